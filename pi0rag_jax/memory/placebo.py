"""A memory whose records answer to each other's keys: the control that tells retrieval from mere disturbance."""

import dataclasses

import numpy as np

from pi0rag_jax.memory import index
from pi0rag_jax.memory.memory import Memory, shares
from pi0rag_jax.memory.neighbours import Neighbours
from pi0rag_jax.memory.record import ANCHOR, CORRECTION, KINDS


class ShuffledKeys:
  """The records that a memory holds now, their keys drawn anew among those of the same kind.

  It answers like the memory: the same keys and distances, other chunks. Records that the memory gets later are not
  in it, and utilities are those of the moment.
  """

  def __init__(self, memory: Memory, seed: int):
    self.header = memory.header
    self._memory = memory
    pairs = list(memory.records())
    rng = np.random.default_rng(seed)
    owner = np.arange(len(pairs))
    for kind in KINDS:
      places = np.array([i for i, (_, record) in enumerate(pairs) if record.kind == kind], int)
      owner[places] = rng.permutation(places)
    shuffled = [(identity, dataclasses.replace(record, key=pairs[other][1].key))
                for (identity, record), other in zip(pairs, owner)]
    self._index = index.build(self.header, max(1, len(pairs)), shuffled)

  @property
  def episodes(self) -> int:
    return self._memory.episodes

  @property
  def successes(self) -> int:
    return self._memory.successes

  def records(self):
    """Yields (id, Record) by rising id, with their own keys."""
    return self._memory.records()

  def query(self, keys_BE, k: int, *, task: str | None = None, kinds=(CORRECTION, ANCHOR)) -> Neighbours:
    """Returns what `Memory.query` does, of the shuffled records."""
    return self._index.search(np.ascontiguousarray(keys_BE, np.float32), shares(k, kinds), task)
