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


def both_classes(positive_E) -> bool:
  """Returns whether there are positive and negative episodes among those with a known label, as in `checked`."""
  return {0.0, 1.0} <= set(np.asarray(positive_E, float))


def checked(scores_E, positive_E) -> tuple[np.ndarray, np.ndarray]:
  """Returns (float64[E], bool[E]) of the episodes with a known label.

  Args:
    scores_E: float[E], finite wherever the label is known.
    positive_E: bool[E], or 1, 0 and nan where it is not known.
  Raises:
    Pi0RagError: the lengths differ, a score is not finite, or only one class is there.
  """
  scores_E, labels_E = np.asarray(scores_E, float), np.asarray(positive_E, float)
  if scores_E.shape != labels_E.shape or scores_E.ndim != 1:
    raise Pi0RagError(f"{scores_E.shape} scores and {labels_E.shape} labels: one of each per episode is wanted")
  known_E = np.isfinite(labels_E)
  scores_E, positive_E = scores_E[known_E], labels_E[known_E] > 0.5
  if not np.isfinite(scores_E).all():
    raise Pi0RagError(f"{int((~np.isfinite(scores_E)).sum())} of {len(scores_E)} scores are not finite")
  if not both_classes(positive_E):
    raise Pi0RagError(f"{int(positive_E.sum())} of {len(positive_E)} episodes are positive: telling two classes apart "
                      "needs some of both")
  return scores_E, positive_E


def auroc(scores_E, positive_E) -> float:
  """Returns the probability that a positive episode scores above a negative one; ties count half. See `checked`."""
  scores_E, positive_E = checked(scores_E, positive_E)
  _, place_E, count_K = np.unique(scores_E, return_inverse=True, return_counts=True)
  rank_E = (np.cumsum(count_K) - (count_K - 1) / 2)[place_E]  # from 1; equal scores share their mean rank
  positives, negatives = int(positive_E.sum()), int((~positive_E).sum())
  return float((rank_E[positive_E].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def auroc_at_equal(scores_E, positive_E, values_E, *, apart: float = 0.05) -> tuple[float, int]:
  """Returns (`auroc` of the pairs whose values hardly differ, their number): what scores tell beside the value.

  Args:
    scores_E, positive_E: as for `checked`.
    values_E: float[E], above 0, such as each episode's pace.
    apart: logarithm of the largest ratio of the values of a pair.
  Returns:
    nan where there are no such pairs.
  """
  known_E = np.isfinite(np.asarray(positive_E, float))
  log_E = np.log(np.maximum(np.asarray(values_E, float)[known_E], np.finfo(float).tiny))
  scores_E, positive_E = checked(scores_E, positive_E)
  near_PQ = np.abs(log_E[positive_E, None] - log_E[~positive_E]) <= apart
  above_PQ = np.sign(scores_E[positive_E, None] - scores_E[~positive_E]) / 2 + 0.5
  return (float(above_PQ[near_PQ].mean()) if near_PQ.any() else float("nan")), int(near_PQ.sum())


def auroc_estimate(scores_E, positive_E) -> Estimate:
  """Returns `auroc` with its 95 % interval, which stays inside [0, 1] and keeps a width at both ends.

  It holds the areas that are within 1.96 standard errors, each its own, of the one that was seen: to the variance of
  Hanley and McNeil 1982 (Radiology 143:29) what Wilson's interval is to a share's. Source: Newcombe 2006, Statistics
  in Medicine 25:559, method 5.
  """
  seen = auroc(scores_E, positive_E)
  _, positive_E = checked(scores_E, positive_E)
  counts = int(positive_E.sum()), int((~positive_E).sum())
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


def either_way(values_E, positive_E) -> np.ndarray:
  """Returns float64[E], the values or their opposites, whichever tell the classes better: of the scored episodes."""
  values_E = np.asarray(values_E, float)
  return values_E if auroc(values_E, positive_E) >= 0.5 else -values_E


def roc_curve(scores_E, positive_E) -> RocCurve:
  """Returns the curve from (0, 0) to (1, 1), one point per different score and the start. See `checked`."""
  scores_E, positive_E = checked(scores_E, positive_E)
  threshold_K = np.concatenate([[np.inf], np.unique(scores_E)[::-1]])
  above_KE = scores_E >= threshold_K[:, None]
  share = lambda chosen_E: above_KE[:, chosen_E].mean(axis=1)  # noqa: E731
  return RocCurve(share(~positive_E), share(positive_E), threshold_K)


def calibration(scores_E, positive_E, *, bins: int = 10) -> list[CalibrationBin]:
  """Returns what share of the episodes succeeded, by what they scored, in bins of equal width over [0, 1].

  Args:
    scores_E: float[E] in [0, 1].
    positive_E: as for `checked`.
    bins: how many.
  """
  scores_E, positive_E = checked(scores_E, positive_E)
  if scores_E.min() < 0 or scores_E.max() > 1:
    raise Pi0RagError(f"scores from {scores_E.min():g} to {scores_E.max():g} are no probabilities")
  place_E = np.minimum((scores_E * bins).astype(int), bins - 1)
  found = []
  for i in range(bins):
    here = place_E == i
    mean = lambda values_E, here=here: float(values_E[here].mean()) if here.any() else float("nan")  # noqa: E731
    found.append(CalibrationBin(i / bins, (i + 1) / bins, mean(scores_E), mean(positive_E), int(here.sum())))
  return found


def calibration_error(bins: list[CalibrationBin]) -> float:
  """Returns the expected calibration error: the mean distance of score and rate, by the number of episodes."""
  total = sum(b.n for b in bins)
  return sum(b.n * abs(b.score - b.rate) for b in bins if b.n) / total
