"""A memory whose records answer to each other's situations: the control that tells retrieval from mere disturbance."""

import dataclasses

import numpy as np

from pi0rag_jax.memory import index
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.neighbours import Neighbours, shares
from pi0rag_jax.memory.record import ANCHOR, CORRECTION, KINDS, Record


class ShuffledMemory:
  """The records that a memory holds now, their situations drawn anew among those of the same kind.

  A situation is the key and the policy's own chunk, which steering compares with its present one; each record keeps the
  change that it asks for. The answers have the memory's keys and distances. Records that the memory gets later are not
  in it, and utilities are those of the moment.

  Args:
    plans: False moves the keys alone: what is left tells how much the policy's own chunk retrieves by itself.
  """

  def __init__(self, memory: Memory, seed: int, *, plans: bool = True):
    self.header = memory.header
    self._memory = memory
    pairs = list(memory.records())
    rng = np.random.default_rng(seed)
    owner = np.arange(len(pairs))
    for kind in KINDS:
      places = np.array([i for i, (_, record) in enumerate(pairs) if record.kind == kind], int)
      owner[places] = rng.permutation(places)
    shuffled = [(identity, _moved(record, pairs[other][1], plans)) for (identity, record), other in zip(pairs, owner)]
    self._index = index.build(self.header, max(1, len(pairs)), shuffled)

  def __len__(self) -> int:
    return len(self._memory)

  @property
  def episodes(self) -> int:
    return self._memory.episodes

  @property
  def successes(self) -> int:
    return self._memory.successes

  @property
  def remote(self) -> bool:
    """Whether records are read over a network."""
    return self._memory.remote

  @property
  def removals(self) -> int:
    """None: what the memory removes stays here."""
    return 0

  def records(self):
    """Yields (id, Record) by rising id, with their own keys."""
    return self._memory.records()

  def query(self, keys_BE, k: int, *, task: str | None = None, kinds=(CORRECTION, ANCHOR)) -> Neighbours:
    """Returns what `Memory.query` does, of the shuffled records."""
    return self._index.search(np.ascontiguousarray(keys_BE, np.float32), shares(k, tuple(kinds)), task)


def _moved(record: Record, other: Record, plans: bool) -> Record:
  """Returns the record in the situation of another one."""
  if not plans:
    return dataclasses.replace(record, key=other.key)
  base_TA, asked_TA = other.base_chunk, record.corrected_chunk.astype(np.float32) - record.base_chunk
  return dataclasses.replace(record, key=other.key, base_chunk=base_TA, corrected_chunk=base_TA + asked_TA)
