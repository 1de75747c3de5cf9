"""How well a head opens and closes the gripper: counts that add up over batches and devices, and scores of them."""

import flax.struct
import jax.numpy as jnp

from pi0rag_jax.typing import Array


@flax.struct.dataclass
class GripperCounts:
  """Decisions by label and answer; open is positive. Sums or means of counts give the same scores."""

  true_open: Array  # float32[]
  false_open: Array
  true_closed: Array
  false_closed: Array

  def __add__(self, other: "GripperCounts") -> "GripperCounts":
    return GripperCounts(
      self.true_open + other.true_open, self.false_open + other.false_open,
      self.true_closed + other.true_closed, self.false_closed + other.false_closed)


def count(logits_BWTG, labels_BWTG, valid_BWT) -> GripperCounts:
  """Returns the counts of one batch.

  Args:
    logits_BWTG: float[..., G]; above 0 is open.
    labels_BWTG: float[..., G]; above 0.5 is open.
    valid_BWT: bool[...], the labels that count, as of `losses.label_mask`.
  """
  says_open, is_open = logits_BWTG > 0, labels_BWTG > 0.5
  total = lambda chosen: jnp.sum(chosen & valid_BWT[..., None], dtype=jnp.float32)  # noqa: E731
  return GripperCounts(
    true_open=total(says_open & is_open), false_open=total(says_open & ~is_open),
    true_closed=total(~says_open & ~is_open), false_closed=total(~says_open & is_open))


def scores(counts: GripperCounts) -> dict[str, Array]:
  """Returns `accuracy`, `precision`, `recall` and `f1` of opening, float32[] each; 0 where nothing was to count."""
  right = counts.true_open + counts.true_closed
  wrong = counts.false_open + counts.false_closed
  return {
    "accuracy": _ratio(right, right + wrong),
    "precision": _ratio(counts.true_open, counts.true_open + counts.false_open),
    "recall": _ratio(counts.true_open, counts.true_open + counts.false_closed),
    "f1": _ratio(2 * counts.true_open, 2 * counts.true_open + wrong),
  }


def _ratio(part, whole):
  return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), 0.0)
