"""What a query returns: arrays of fixed shape, whatever the memory holds."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
  """The nearest records of each query: first the corrections, then the anchors, each by rising distance.

  Slots without a record have mask False, id -1, distance infinity and chunks of zeros.
  """

  ids_BK: np.ndarray  # int64[B, K]
  distances_BK: np.ndarray  # float32[B, K], L2 in key units
  base_BKTA: np.ndarray  # float32[B, K, T, A], in the units of the robot
  corrected_BKTA: np.ndarray  # float32[B, K, T, A], in the units of the robot
  is_correction_BK: np.ndarray  # bool[B, K]
  mask_BK: np.ndarray  # bool[B, K], True where there is a record

  @classmethod
  def empty(cls, batch: int, k: int, chunk_shape: tuple[int, int]) -> "Neighbours":
    """Returns neighbours without any record."""
    return cls(
      ids_BK=np.full((batch, k), -1, np.int64),
      distances_BK=np.full((batch, k), np.inf, np.float32),
      base_BKTA=np.zeros((batch, k, *chunk_shape), np.float32),
      corrected_BKTA=np.zeros((batch, k, *chunk_shape), np.float32),
      is_correction_BK=np.zeros((batch, k), bool),
      mask_BK=np.zeros((batch, k), bool),
    )
