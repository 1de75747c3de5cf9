"""From scores to the demonstrations that are kept."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pi0rag_jax.curation import metrics
from pi0rag_jax.errors import Pi0RagError, unknown_name

# `fixed`: a number. `demo_score`: the mean episode score of the training rollouts at the best epoch. `fraction`: so
# many of the best. `roc`: where Youden's index is largest on the validation rollouts.
RULES = ("fixed", "demo_score", "fraction", "roc")
OF_ROLLOUTS = ("demo_score", "roc")
# Of the rule `fixed` where nothing else is given: what a classifier of whole episodes holds for even.
EVEN = 0.5


@dataclasses.dataclass(frozen=True)
class RolloutScores:
  """What a classifier says of the rollouts that it was trained and validated on."""

  training_J: np.ndarray  # float64
  training_success_J: np.ndarray  # float64, 1 or 0
  validation_J: np.ndarray
  validation_success_J: np.ndarray


def threshold(rule: str, *, value: float | None, scores_J: np.ndarray, rollouts: Sequence[RolloutScores]) -> float:
  """Returns the least score of an episode that is kept.

  Args:
    rule: one of RULES.
    value: the number of `fixed`, None for EVEN; the share in (0, 1] of `fraction`; of no use to the others.
    scores_J: float[J] of the demonstrations, nan for those without a score.
    rollouts: of each classifier of an ensemble, whose thresholds are averaged, as its scores are.
  """
  if rule == "fixed":
    return EVEN if value is None else float(value)
  if rule == "fraction":
    return _fraction(scores_J, value)
  if rule == "demo_score":
    return float(np.mean([each.training_J.mean() for each in rollouts]))
  if rule == "roc":
    return float(np.mean([youden(each.validation_J, each.validation_success_J) for each in rollouts]))
  raise unknown_name("rule for the threshold", rule, RULES)


def kept(rule: str, threshold: float, scores_J: np.ndarray, *, value: float | None = None) -> np.ndarray:
  """Returns bool[J]; of equal scores at the border of a `fraction` the first ones are kept, so that the number fits."""
  if rule != "fraction":
    return np.asarray(scores_J) >= threshold
  known = np.isfinite(scores_J)
  best = np.argsort(-np.where(known, scores_J, -np.inf), kind="stable")[: _count(known, value)]
  return np.isin(np.arange(len(scores_J)), best)


def youden(scores_J: np.ndarray, success_J: np.ndarray) -> float:
  """Returns the threshold with the largest share of successes above it less that of failures.

  It lies in the middle between that score and the next lower one, since the border itself is a single episode's.
  """
  curve = metrics.roc_curve(scores_J, success_J)
  best = int(np.argmax(curve.true_positive_K[1:] - curve.false_positive_K[1:])) + 1
  lower = curve.threshold_K[min(best + 1, len(curve.threshold_K) - 1)]
  return float((curve.threshold_K[best] + lower) / 2)


def _fraction(scores_J: np.ndarray, value: float | None) -> float:
  known = np.isfinite(scores_J)
  return float(np.sort(scores_J[known])[::-1][_count(known, value) - 1])


def _count(known_J: np.ndarray, value: float | None) -> int:
  """Returns how many episodes a share is: one at least."""
  if value is None or not 0 < value <= 1 or not known_J.any():
    raise Pi0RagError(f"the rule 'fraction' keeps a share of {value!r} of {int(known_J.sum())} scored episodes; "
                      "allowed: a share above 0 up to 1, of one episode at least")
  return max(round(value * int(known_J.sum())), 1)
