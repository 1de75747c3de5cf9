"""Exact quantiles of vectors that come in batches: two passes over them, and memory that does not grow with them.

The bits of float32 numbers, which training has too, can be brought into the numbers' order. The first pass counts the
upper 16 bits, which tells which of 65,536 drawers each wanted rank lies in; the second counts the lower 16 bits of what
lies in those drawers. Counts do not depend on the order of the batches, so threads may add them.
"""

import threading
from collections.abc import Sequence

import numpy as np

from pi0rag_jax.errors import Pi0RagError

HALF_BITS = 16
DRAWERS = 1 << HALF_BITS
_SIGN = np.uint32(1 << 31)


class Quantiles:
  """Counts batches twice, `first` and then `second`; both may be called from several threads."""

  def __init__(self, dims: int, shares: Sequence[float]):
    """Takes the quantiles that are wanted, as shares from 0 to 1."""
    self._shares = np.asarray(shares, float)
    self._upper_PX = np.zeros((dims, DRAWERS), np.int64)
    self._lower: list[dict[int, np.ndarray]] = []  # dimension -> drawer -> int64[DRAWERS]
    self._ranks_R = np.zeros(0, np.int64)
    self._lock = threading.Lock()

  @property
  def count(self) -> int:
    return int(self._upper_PX[0].sum()) if len(self._upper_PX) else 0

  def first(self, rows_XP: np.ndarray) -> None:
    """Counts float[X, P] for the first time."""
    if rows_XP.shape[1] != len(self._upper_PX):
      raise Pi0RagError(f"vectors have {rows_XP.shape[1]} dims, those before had {len(self._upper_PX)}")
    uppers_XP = _keys(rows_XP) >> HALF_BITS
    with self._lock:
      for counts_X, upper_X in zip(self._upper_PX, uppers_XP.T):
        _count(counts_X, upper_X)

  def turn(self) -> None:
    """Ends the first pass: the drawers of all ranks are known."""
    places = self._shares * (self.count - 1)
    self._ranks_R = np.minimum(np.floor(places)[:, None] + [0, 1], self.count - 1).astype(np.int64).ravel()
    self._lower = [{drawer: np.zeros(DRAWERS, np.int64) for drawer in set(self._drawers(dim))}
                   for dim in range(len(self._upper_PX))]

  def second(self, rows_XP: np.ndarray) -> None:
    """Counts the same rows again."""
    keys_XP = _keys(rows_XP)
    for drawers, keys_X in zip(self._lower, keys_XP.T):
      uppers_X = keys_X >> HALF_BITS
      for drawer, counts_X in drawers.items():
        lower_X = keys_X[uppers_X == drawer] & (DRAWERS - 1)
        with self._lock:
          _count(counts_X, lower_X)

  def result(self) -> np.ndarray:
    """Returns float64[shares, P], as `np.quantile` interpolates between the two nearest ranks.

    Raises:
      Pi0RagError: the two passes saw different rows.
    """
    values_PR = np.asarray([self._values(dim) for dim in range(len(self._upper_PX))]).reshape(-1, len(self._ranks_R))
    low_QP, high_QP = values_PR.T[::2], values_PR.T[1::2]
    places = self._shares * (self.count - 1)
    weight_Q1 = (places - np.floor(places))[:, None]
    apart_QP = high_QP - low_QP
    # numpy's own rule, from the nearer end.
    return np.where(weight_Q1 < 0.5, low_QP + apart_QP * weight_Q1, high_QP - apart_QP * (1 - weight_Q1))

  def _drawers(self, dim: int) -> list[int]:
    """Returns the drawer of every rank."""
    return np.searchsorted(np.cumsum(self._upper_PX[dim]), self._ranks_R, side="right").tolist()

  def _values(self, dim: int) -> np.ndarray:
    """Returns float64[R], what stands at the ranks."""
    ends_X = np.cumsum(self._upper_PX[dim])
    keys = []
    for rank, drawer in zip(self._ranks_R.tolist(), self._drawers(dim)):
      lower_X = self._lower[dim][drawer]
      if lower_X.sum() != self._upper_PX[dim, drawer]:
        raise Pi0RagError("the data changed while their statistics were computed: compute them again")
      within = rank - (int(ends_X[drawer - 1]) if drawer else 0)
      keys.append(drawer << HALF_BITS | int(np.searchsorted(np.cumsum(lower_X), within, side="right")))
    keys_R = np.asarray(keys, np.uint32)
    return np.where(keys_R & _SIGN, keys_R ^ _SIGN, ~keys_R).astype(np.uint32).view(np.float32).astype(np.float64)


def _count(counts_X: np.ndarray, places: np.ndarray) -> None:
  """Adds 1 at every place, as often as it occurs."""
  if len(places) < DRAWERS // 8:
    np.add.at(counts_X, places, 1)
  else:
    counts_X += np.bincount(places, minlength=DRAWERS)


def _keys(rows_XP: np.ndarray) -> np.ndarray:
  """Returns uint32[X, P] in the order of the numbers as float32; 0 and -0 are one."""
  bits_XP = (np.asarray(rows_XP, np.float32) + np.float32(0)).view(np.uint32)
  return np.where(bits_XP & _SIGN, ~bits_XP, bits_XP | _SIGN)
