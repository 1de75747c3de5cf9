"""Normalization of states and actions by recorded statistics, as openpi does it."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from pi0rag_jax import errors

# openpi adds this to every scale so that a constant dimension does not divide by zero.
EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class NormStats:
  """Statistics of one array kind ('state' or 'actions') over a data set."""

  mean: np.ndarray  # float[D]
  std: np.ndarray  # float[D]
  q01: np.ndarray | None = None  # float[D], 1 % quantile
  q99: np.ndarray | None = None  # float[D]

  @classmethod
  def from_dict(cls, values: Mapping) -> "NormStats":
    """Returns the statistics of one entry of openpi's norm_stats.json."""
    arrays = {k: None if values.get(k) is None else np.asarray(values[k], np.float64)
              for k in ("mean", "std", "q01", "q99")}
    if arrays["mean"] is None or arrays["std"] is None:
      raise errors.Pi0RagError(f"norm stats need 'mean' and 'std', seen: {', '.join(sorted(values))}")
    return cls(**arrays)

  def to_dict(self) -> dict:
    """Returns the JSON form that openpi reads."""
    return {k: None if v is None else np.asarray(v).tolist() for k, v in dataclasses.asdict(self).items()}


def normalize(x, stats: NormStats):
  """Returns z-scores: (x - mean) / (std + 1e-6), the statistics cut to x's last dimension.

  Args:
    x: float[..., D'], D' at most the statistics' D.
  Errors: Pi0RagError when x is wider than the statistics.
  """
  mean, std = _fit(stats.mean, x), _fit(stats.std, x)
  return (x - mean) / (std + EPSILON)


def unnormalize(x, stats: NormStats):
  """Returns what `normalize` was given: x * (std + 1e-6) + mean on the statistics' dimensions.

  Dimensions of x beyond the statistics (a model's padding) are dropped: no robot reads them.
  """
  width = stats.mean.shape[-1]
  return x[..., :width] * (stats.std + EPSILON) + stats.mean


def pad_last(x, width: int):
  """Returns x with zeros added to its last dimension up to `width`."""
  missing = width - x.shape[-1]
  if missing < 0:
    raise errors.Pi0RagError(f"array has {x.shape[-1]} dims, the model takes at most {width}")
  return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])


def _fit(values: np.ndarray, x) -> np.ndarray:
  if x.shape[-1] > values.shape[-1]:
    raise errors.Pi0RagError(f"array has {x.shape[-1]} dims, the norm stats have {values.shape[-1]}: "
                             "they belong to another robot or data set")
  return values[..., : x.shape[-1]]
