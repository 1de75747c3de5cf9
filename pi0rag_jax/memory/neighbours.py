"""What a query returns: arrays of fixed shape, whatever the memory holds; and what is said of it afterwards."""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.record import KINDS, Header


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
  """The nearest records of each query, kind after kind as they were asked for, each by rising distance.

  Slots without a record have mask False, id and kind -1, distance infinity and zeros elsewhere.
  """

  ids_BK: np.ndarray  # int64[B, K]
  distances_BK: np.ndarray  # float32[B, K], L2 in key units
  base_BKTA: np.ndarray  # [B, K, T, A], in the units of the robot and the memory's chunk dtype
  corrected_BKTA: np.ndarray  # [B, K, T, A], likewise
  kind_BK: np.ndarray  # int8[B, K], the place in KINDS
  helped_BK: np.ndarray  # float32[B, K], see Record
  hurt_BK: np.ndarray  # float32[B, K], see Record
  episode_BK: np.ndarray  # int64[B, K], see Record
  mask_BK: np.ndarray  # bool[B, K], True where there is a record

  @classmethod
  def empty(cls, batch: int, k: int, header: Header) -> "Neighbours":
    """Returns neighbours without any record."""
    return cls(
      ids_BK=np.full((batch, k), -1, np.int64),
      distances_BK=np.full((batch, k), np.inf, np.float32),
      base_BKTA=np.zeros((batch, k, *header.chunk_shape), header.chunk_dtype),
      corrected_BKTA=np.zeros((batch, k, *header.chunk_shape), header.chunk_dtype),
      kind_BK=np.full((batch, k), -1, np.int8),
      helped_BK=np.zeros((batch, k), np.float32),
      hurt_BK=np.zeros((batch, k), np.float32),
      episode_BK=np.zeros((batch, k), np.int64),
      mask_BK=np.zeros((batch, k), bool),
    )

  def of_kind(self, kind: str) -> np.ndarray:
    """Returns bool[B, K]: where there is a record of this kind."""
    return self.kind_BK == KINDS.index(kind)


@functools.lru_cache(maxsize=16)
def shares(k: int, kinds: tuple[str, ...]) -> Mapping[str, int]:
  """Returns how many of k places each kind gets. Errors: Pi0RagError for k below 1, no kind, or an unknown one."""
  if k < 1:
    raise Pi0RagError(f"k is {k}, must be 1 or more")
  if not kinds or set(kinds) - set(KINDS) or len(set(kinds)) < len(kinds):
    raise Pi0RagError(f"kinds are {tuple(kinds)}, allowed: one or more of {', '.join(KINDS)}, each once")
  return MappingProxyType(
    {kind: (i + 1) * k // len(kinds) - i * k // len(kinds) for i, kind in enumerate(kinds)})


def largest_says(ids, says) -> dict[int, float]:
  """Returns the largest weight of each id that has one above 0."""
  ids, says = np.asarray(ids), np.asarray(says, float)
  if ids.shape != says.shape:
    raise Pi0RagError(f"ids have shape {ids.shape}, their weights {says.shape}: must be equal")
  if not (np.isfinite(says) & (says >= 0)).all():
    raise Pi0RagError("weights must be finite and at least 0")
  largest: dict[int, float] = {}
  for identity, say in zip(ids[ids >= 0].tolist(), says[ids >= 0].tolist()):
    largest[identity] = max(say, largest.get(identity, 0.0))
  return {identity: say for identity, say in largest.items() if say > 0}
