"""How well scores tell successes from failures: pure functions of arrays."""

import dataclasses

import numpy as np
from scipy import optimize, stats

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.statistics import CONFIDENCE, Estimate

# Of the solver that finds the ends of an interval.
_NEAR = 1e-9


@dataclasses.dataclass(frozen=True)
class RocCurve:
  """Every threshold that separates scores differently, falling from infinity; K of them."""

  false_positive_K: np.ndarray  # float64, share of the failures that score at least the threshold
  true_positive_K: np.ndarray  # float64, share of the successes
  threshold_K: np.ndarray  # float64


@dataclasses.dataclass(frozen=True)
class CalibrationBin:
  """Episodes whose scores lie in [low, high); the last bin has its upper end too."""

  low: float
  high: float
  score: float  # their mean; nan in an empty bin
  rate: float  # share of them that succeeded; nan in an empty bin
  n: int


def both_classes(positive_J) -> bool:
  """Returns whether there are positive and negative episodes among those with a known label, as in `checked`."""
  return {0.0, 1.0} <= set(np.asarray(positive_J, float))


def checked(scores_J, positive_J) -> tuple[np.ndarray, np.ndarray]:
  """Returns (float64[J], bool[J]) of the episodes with a known label.

  Args:
    scores_J: float[J], finite wherever the label is known.
    positive_J: bool[J], or 1, 0 and nan where it is not known.
  Raises:
    Pi0RagError: the lengths differ, a score is not finite, or only one class is there.
  """
  scores_J, labels_J = np.asarray(scores_J, float), np.asarray(positive_J, float)
  if scores_J.shape != labels_J.shape or scores_J.ndim != 1:
    raise Pi0RagError(f"{scores_J.shape} scores and {labels_J.shape} labels: one of each per episode is wanted")
  known_J = np.isfinite(labels_J)
  scores_J, positive_J = scores_J[known_J], labels_J[known_J] > 0.5
  if not np.isfinite(scores_J).all():
    raise Pi0RagError(f"{int((~np.isfinite(scores_J)).sum())} of {len(scores_J)} scores are not finite")
  if not both_classes(positive_J):
    raise Pi0RagError(f"{int(positive_J.sum())} of {len(positive_J)} episodes are positive: telling two classes apart "
                      "needs some of both")
  return scores_J, positive_J


def auroc(scores_J, positive_J) -> float:
  """Returns the probability that a positive episode scores above a negative one; ties count half. See `checked`."""
  scores_J, positive_J = checked(scores_J, positive_J)
  _, place_J, count_K = np.unique(scores_J, return_inverse=True, return_counts=True)
  rank_J = (np.cumsum(count_K) - (count_K - 1) / 2)[place_J]  # from 1; equal scores share their mean rank
  positives, negatives = int(positive_J.sum()), int((~positive_J).sum())
  return float((rank_J[positive_J].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def auroc_at_equal(scores_J, positive_J, values_J, *, apart: float = 0.05) -> tuple[float, int]:
  """Returns (`auroc` of the pairs whose values hardly differ, their number): what scores tell beside the value.

  Args:
    scores_J, positive_J: as for `checked`.
    values_J: float[J], above 0, such as each episode's pace.
    apart: logarithm of the largest ratio of the values of a pair.
  Returns:
    nan where there are no such pairs.
  """
  known_J = np.isfinite(np.asarray(positive_J, float))
  log_J = np.log(np.maximum(np.asarray(values_J, float)[known_J], np.finfo(float).tiny))
  scores_J, positive_J = checked(scores_J, positive_J)
  near_PQ = np.abs(log_J[positive_J, None] - log_J[~positive_J]) <= apart
  above_PQ = np.sign(scores_J[positive_J, None] - scores_J[~positive_J]) / 2 + 0.5
  return (float(above_PQ[near_PQ].mean()) if near_PQ.any() else float("nan")), int(near_PQ.sum())


def auroc_estimate(scores_J, positive_J) -> Estimate:
  """Returns `auroc` with its 95 % interval, which stays inside [0, 1] and keeps a width at both ends.

  It holds the areas that are within 1.96 standard errors, each its own, of the one that was seen: to the variance of
  Hanley and McNeil 1982 (Radiology 143:29) what Wilson's interval is to a share's. Source: Newcombe 2006, Statistics
  in Medicine 25:559, method 5.
  """
  seen = auroc(scores_J, positive_J)
  _, positive_J = checked(scores_J, positive_J)
  counts = int(positive_J.sum()), int((~positive_J).sum())
  z = stats.norm.ppf((1 + CONFIDENCE) / 2)
  beyond = lambda area: (area - seen) ** 2 - z**2 * _area_variance(area, *counts)  # noqa: E731
  end = lambda *bracket: float(optimize.root_scalar(beyond, bracket=bracket).root)  # noqa: E731
  low = end(0.0, seen - _NEAR) if seen > _NEAR else 0.0
  high = end(seen + _NEAR, 1.0) if seen < 1 - _NEAR else 1.0
  return Estimate(seen, low, high, sum(counts))


def _area_variance(area: float, positives: int, negatives: int) -> float:
  """Returns the variance of an AUROC, with the mean of both counts where Hanley and McNeil have one of them each."""
  others = (positives + negatives) / 2 - 1
  agree = others * ((1 - area) / (2 - area) + area / (1 + area))
  return area * (1 - area) * (1 + agree) / (positives * negatives)


def either_way(values_J, positive_J) -> np.ndarray:
  """Returns float64[J], the values or their opposites, whichever tell the classes better: of the scored episodes."""
  values_J = np.asarray(values_J, float)
  return values_J if auroc(values_J, positive_J) >= 0.5 else -values_J


def roc_curve(scores_J, positive_J) -> RocCurve:
  """Returns the curve from (0, 0) to (1, 1), one point per different score and the start. See `checked`."""
  scores_J, positive_J = checked(scores_J, positive_J)
  threshold_K = np.concatenate([[np.inf], np.unique(scores_J)[::-1]])
  above_KE = scores_J >= threshold_K[:, None]
  share = lambda chosen_J: above_KE[:, chosen_J].mean(axis=1)  # noqa: E731
  return RocCurve(share(~positive_J), share(positive_J), threshold_K)


def calibration(scores_J, positive_J, *, bins: int = 10) -> list[CalibrationBin]:
  """Returns what share of the episodes succeeded, by what they scored, in bins of equal width over [0, 1].

  Args:
    scores_J: float[J] in [0, 1].
    positive_J: as for `checked`.
    bins: how many.
  """
  scores_J, positive_J = checked(scores_J, positive_J)
  if scores_J.min() < 0 or scores_J.max() > 1:
    raise Pi0RagError(f"scores from {scores_J.min():g} to {scores_J.max():g} are no probabilities")
  place_J = np.minimum((scores_J * bins).astype(int), bins - 1)
  found = []
  for i in range(bins):
    here = place_J == i
    mean = lambda values_J, here=here: float(values_J[here].mean()) if here.any() else float("nan")  # noqa: E731
    found.append(CalibrationBin(i / bins, (i + 1) / bins, mean(scores_J), mean(positive_J), int(here.sum())))
  return found


def calibration_error(bins: list[CalibrationBin]) -> float:
  """Returns the expected calibration error: the mean distance of score and rate, by the number of episodes."""
  total = sum(b.n for b in bins)
  return sum(b.n * abs(b.score - b.rate) for b in bins if b.n) / total
