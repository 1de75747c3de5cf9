"""Normalization of states and actions by recorded statistics, as openpi does it."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from pi0rag_jax import errors

# openpi adds this to every scale so that a constant dimension does not divide by zero.
EPSILON = 1e-6
# The deviation that hides an entry of the state: normalized, it is zero to any network. It travels in norm_stats.json,
# so whatever loads the checkpoint hides the entry too, and needs to know nothing of it.
HIDDEN_STD = 1e6
# A dimension whose 1 % and 99 % quantiles are no further apart hardly varies: in its own units, relative to its mean,
# and relative to its deviation, where a few frames are far from all others.
SMALL_SPREAD, SMALL_SHARE_OF_MEAN, SMALL_SHARE_OF_STD = 1e-4, 1e-6, 1e-2


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
    mean, std, q01, q99 = (None if values.get(k) is None else np.asarray(values[k], np.float64)
                           for k in ("mean", "std", "q01", "q99"))
    if mean is None or std is None:
      raise errors.Pi0RagError(f"norm stats need 'mean' and 'std', seen: {', '.join(sorted(values))}")
    return cls(mean, std, q01, q99)

  def to_dict(self) -> dict:
    """Returns the JSON form that openpi reads."""
    return {k: None if v is None else np.asarray(v).tolist() for k, v in dataclasses.asdict(self).items()}

  @property
  def dim(self) -> int:
    return self.mean.shape[-1]

  def describe(self, dim: int) -> str:
    """Returns the range of one dimension in words, for messages."""
    if self.q01 is None or self.q99 is None:
      return f"{self.mean[dim]:.4g} ± {self.std[dim]:.4g} (mean, std)"
    return f"{self.q01[dim]:.4g} to {self.q99[dim]:.4g} (q01, q99)"


def normalize(x, stats: NormStats, *, quantile: bool = False):
  """Returns z-scores (x - mean) / (std + 1e-6), the statistics cut to x's last dimension.

  Args:
    x: float[..., D'], D' at most the statistics' D.
    quantile: maps the 1 % and 99 % quantiles to -1 and 1 instead; what lies outside is not clipped.
  Errors: Pi0RagError when x is wider than the statistics, or they have no quantiles.
  """
  if x.shape[-1] > stats.dim:
    raise other_robot(x, stats)
  low, scale = low_and_scale(stats, x.shape[-1], quantile)
  return (x - low) / scale * 2.0 - 1.0 if quantile else (x - low) / scale


def unnormalize(x, stats: NormStats, *, quantile: bool = False):
  """Returns what `normalize` was given.

  Dimensions of x beyond the statistics (a model's padding) mean nothing: as in openpi, quantiles leave them
  alone and z-scores multiply them by 1 + 1e-6.

  Errors: Pi0RagError when the statistics are wider than x, or have no quantiles.
  """
  if stats.dim > x.shape[-1]:
    raise other_robot(x, stats)
  low, scale = low_and_scale(stats, stats.dim, quantile)
  if quantile:
    return np.concatenate([(x[..., : stats.dim] + 1.0) / 2.0 * scale + low, x[..., stats.dim :]], axis=-1)
  width = x.shape[-1]
  return x * pad_to_dim(scale, width, value=1.0 + EPSILON) + pad_to_dim(low, width)


def affine(stats: NormStats, *, quantile: bool = False) -> tuple[np.ndarray, np.ndarray]:
  """Returns float32 (mean, scale) with x = normalized * scale + mean, for arithmetic on the device.

  Errors: Pi0RagError where quantiles are wanted and missing.
  """
  low, scale = low_and_scale(stats, stats.dim, quantile)
  mean, scale = (low + scale / 2, scale / 2) if quantile else (low, scale)
  return np.asarray(mean, np.float32), np.asarray(scale, np.float32)


def other_robot(x, stats: NormStats) -> errors.Pi0RagError:
  """Returns the error for an array and statistics of different sizes."""
  return errors.Pi0RagError(f"array has {x.shape[-1]} dims, the norm stats have {stats.dim}: "
                            "they belong to another robot or data set")


def pad_to_dim(x, dim: int, *, axis: int = -1, value: float = 0.0):
  """Returns x with `value` added to the end of an axis up to `dim`; an axis that is longer stays as it is."""
  if x.shape[axis] >= dim:
    return x
  missing = list(x.shape)
  missing[axis] = dim - x.shape[axis]
  return np.concatenate([x, np.full(missing, value, x.dtype)], axis=axis)  # np.pad takes four times as long


def pad_last(x, width: int, name: str = "array"):
  """Returns x with zeros added to its last dimension up to `width`.

  Errors: Pi0RagError when x is wider.
  """
  if x.shape[-1] > width:
    raise errors.Pi0RagError(f"{name} has {x.shape[-1]} dims, the model takes at most {width}")
  return pad_to_dim(x, width)


def low_and_scale(stats: NormStats, width: int, quantile: bool):
  """Returns what is subtracted and divided by, float[width] each."""
  if not quantile:
    return stats.mean[..., :width], stats.std[..., :width] + EPSILON
  if stats.q01 is None or stats.q99 is None:
    raise errors.Pi0RagError("norm stats have no q01 and q99: pi0.5 and pi0-FAST normalize by quantiles; "
                             "compute the statistics anew")
  low = stats.q01[..., :width]
  return low, stats.q99[..., :width] - low + EPSILON


def hardly_varying(stats: NormStats) -> list[str]:
  """Returns, for each dimension that is nearly constant and not hidden, what normalizing by it does."""
  if stats.q01 is None or stats.q99 is None:
    return []
  spread_P = stats.q99 - stats.q01
  small_P = np.maximum(SMALL_SPREAD, SMALL_SHARE_OF_MEAN * np.abs(stats.mean))
  small_P = np.maximum(small_P, SMALL_SHARE_OF_STD * stats.std)
  return [f"[{dim}] hardly varies: q99 - q01 is {spread_P[dim]:.3g}, the deviation {stats.std[dim]:.3g}; "
          "normalized by that, a small change becomes a large number"
          for dim in np.flatnonzero((spread_P <= small_P) & (stats.std < HIDDEN_STD)).tolist()]


def doubts(stats: NormStats) -> list[str]:
  """Returns what looks wrong about statistics, by dimension, in words; what is hidden from a policy does not."""
  found = hardly_varying(stats)
  if stats.q01 is None or stats.q99 is None:
    return found + [f"[{dim}] hardly varies: its deviation is {stats.std[dim]:.3g}"
                    for dim in np.flatnonzero(stats.std <= SMALL_SPREAD).tolist()]
  outside_P = (stats.mean < stats.q01 - EPSILON) | (stats.mean > stats.q99 + EPSILON)
  return found + [f"[{dim}] has a mean of {stats.mean[dim]:.3g}, and lies at {stats.describe(dim)}: a few frames are "
                  "far from all others" for dim in np.flatnonzero(outside_P).tolist()]
