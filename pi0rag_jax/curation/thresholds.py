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

  training_E: np.ndarray  # float64
  training_success_E: np.ndarray  # float64, 1 or 0
  validation_E: np.ndarray
  validation_success_E: np.ndarray


def threshold(rule: str, *, value: float | None, scores_E: np.ndarray, rollouts: Sequence[RolloutScores]) -> float:
  """Returns the least score of an episode that is kept.

  Args:
    rule: one of RULES.
    value: the number of `fixed`, None for EVEN; the share in (0, 1] of `fraction`; of no use to the others.
    scores_E: float[E] of the demonstrations, nan for those without a score.
    rollouts: of each classifier of an ensemble, whose thresholds are averaged, as its scores are.
  """
  if rule == "fixed":
    return EVEN if value is None else float(value)
  if rule == "fraction":
    return _fraction(scores_E, value)
  if rule == "demo_score":
    return float(np.mean([each.training_E.mean() for each in rollouts]))
  if rule == "roc":
    return float(np.mean([youden(each.validation_E, each.validation_success_E) for each in rollouts]))
  raise unknown_name("rule for the threshold", rule, RULES)


def kept(rule: str, threshold: float, scores_E: np.ndarray, *, value: float | None = None) -> np.ndarray:
  """Returns bool[E]; of equal scores at the border of a `fraction` the first ones are kept, so that the number fits."""
  if rule != "fraction":
    return np.asarray(scores_E) >= threshold
  known = np.isfinite(scores_E)
  best = np.argsort(-np.where(known, scores_E, -np.inf), kind="stable")[: _count(known, value)]
  return np.isin(np.arange(len(scores_E)), best)


def youden(scores_E: np.ndarray, success_E: np.ndarray) -> float:
  """Returns the threshold with the largest share of successes above it less that of failures.

  It lies in the middle between that score and the next lower one, since the border itself is a single episode's.
  """
  curve = metrics.roc_curve(scores_E, success_E)
  best = int(np.argmax(curve.true_positive_K[1:] - curve.false_positive_K[1:])) + 1
  lower = curve.threshold_K[min(best + 1, len(curve.threshold_K) - 1)]
  return float((curve.threshold_K[best] + lower) / 2)


def _fraction(scores_E: np.ndarray, value: float | None) -> float:
  known = np.isfinite(scores_E)
  return float(np.sort(scores_E[known])[::-1][_count(known, value) - 1])


def _count(known_E: np.ndarray, value: float | None) -> int:
  """Returns how many episodes a share is: one at least."""
  if value is None or not 0 < value <= 1 or not known_E.any():
    raise Pi0RagError(f"the rule 'fraction' keeps a share of {value!r} of {int(known_E.sum())} scored episodes; "
                      "allowed: a share above 0 up to 1, of one episode at least")
  return max(round(value * int(known_E.sum())), 1)
