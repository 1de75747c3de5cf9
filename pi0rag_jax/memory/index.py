"""The FAISS index over the records' keys, with the chunks that retrieval needs, all in arrays made once.

Failures, then corrections fill the rows from the first one up, anchors from the last one down: one pool of rows,
three ranges that are searched separately. Exact L2 search on float16 keys. Nothing here locks: the facade does.
"""

import itertools
import math
import operator
import os
from collections.abc import Mapping

import faiss
import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.neighbours import Neighbours
from pi0rag_jax.memory.record import ANCHOR, CORRECTION, FAILURE, KINDS, Header, Record
from pi0rag_jax.memory.store import Counters

# FAISS compares this many float16 numbers at once; with a key width that is no multiple it is ten times slower.
LANES = 16
MAX_CAPACITY = 10**9
JAX_ALIGNMENT = 64  # bytes


def check_capacity(capacity) -> None:
  """Raises Pi0RagError unless rows for so many records can be made."""
  if not isinstance(capacity, int) or isinstance(capacity, bool) or not 0 < capacity <= MAX_CAPACITY:
    raise Pi0RagError(f"capacity is {capacity!r}, must be a whole number of 1 or more, at most {MAX_CAPACITY}")


def build(header: Header, capacity: int, records) -> "MemoryIndex":
  """Returns the index of (id, Record) pairs, but for records in quarantine."""
  records = ((identity, record) for identity, record in records if not record.quarantine)
  first = list(itertools.islice(records, 1))  # read before any array is made, since a header may be damaged
  index = MemoryIndex(header, capacity)
  for identity, record in itertools.chain(first, records):
    index.add(identity, record)
  return index


class MemoryIndex:
  """Keys, chunks and ids of up to `capacity` records, derived from a store.

  Attributes by row, moved together: `ids_M` int64, `uses_M` int64, `helped_M` and `hurt_M` float64, `episode_M`
  int64, and for eviction `spacing_M` float32 (L2 to the nearest of the same kind, NaN where not known), `nearest_M`
  int64 (its id), `fresh_M` bool.
  """

  def __init__(self, header: Header, capacity: int):
    check_capacity(capacity)
    self.header, self.capacity = header, capacity
    width = -(-header.key_dim // LANES) * LANES
    needed = capacity * (2 * width + 2 * math.prod(header.chunk_shape) * np.dtype(header.chunk_dtype).itemsize)
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > here:
      raise Pi0RagError(f"a capacity of {capacity} takes {needed / 1e9:.3g} GB of memory, this machine has "
                        f"{here / 1e9:.3g}: lower it")
    self._faiss = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)
    # The vector is sized once, so its memory never moves and rows are overwritten in place through the view.
    self._faiss.codes.resize(capacity * self._faiss.code_size)
    self._faiss.ntotal = capacity
    codes = faiss.rev_swig_ptr(self._faiss.codes.data(), capacity * self._faiss.code_size)
    self._padded_ME = codes.view(np.float16).reshape(capacity, width)  # zero beyond the key
    self._base_MTA = np.zeros((capacity, *header.chunk_shape), header.chunk_dtype)
    self._corrected_MTA = np.zeros_like(self._base_MTA)
    self._task_M = np.zeros(capacity, np.int32)
    self.ids_M = np.full(capacity, -1, np.int64)
    self.uses_M = np.zeros(capacity, np.int64)
    self.helped_M, self.hurt_M = np.zeros((2, capacity))
    self.episode_M = np.zeros(capacity, np.int64)
    self.spacing_M = np.full(capacity, np.nan, np.float32)
    self.nearest_M = np.full(capacity, -1, np.int64)
    self.fresh_M = np.zeros(capacity, bool)
    self._columns = (
      self._padded_ME, self._base_MTA, self._corrected_MTA, self._task_M,
      self.ids_M, self.uses_M, self.helped_M, self.hurt_M, self.episode_M,
      self.spacing_M, self.nearest_M, self.fresh_M,
    )  # fmt: skip
    self._rows: dict[int, int] = {}  # id -> row
    self._tasks: dict[str, int] = {}
    self._counts: dict[str, int] = dict.fromkeys(KINDS, 0)
    self._whole: dict[str, tuple[slice, faiss.SearchParameters]] = {}  # see _parameters

  def __len__(self) -> int:
    return len(self._rows)

  def __contains__(self, identity: int) -> bool:
    return identity in self._rows

  def count(self, kind: str) -> int:
    """Returns the number of records of a kind."""
    return self._counts[kind]

  def region(self, kind: str) -> slice:
    """Returns the rows of a kind."""
    if kind == ANCHOR:
      return slice(self.capacity - self._counts[ANCHOR], self.capacity)
    failures = self._counts[FAILURE]
    return slice(0, failures) if kind == FAILURE else slice(failures, failures + self._counts[CORRECTION])

  def ids(self) -> list[int]:
    """Returns the ids of all records."""
    return list(self._rows)

  def row(self, identity: int) -> int:
    """Returns the row of a record; KeyError if it is not here."""
    return self._rows[identity]

  def nbytes(self) -> int:
    """Returns the bytes of all arrays at full capacity."""
    return sum(column.nbytes for column in self._columns)

  def add(self, identity: int, record: Record) -> None:
    """Writes one record to a free row. Errors: Pi0RagError if there is none, or the id is taken."""
    if len(self) == self.capacity or identity in self._rows:
      raise Pi0RagError(f"no row for record {identity}: {len(self)} of {self.capacity} taken, or it is here")
    row = self._free_row(record.kind)
    self._padded_ME[row, : self.header.key_dim] = record.key
    self._base_MTA[row], self._corrected_MTA[row] = record.base_chunk, record.corrected_chunk
    self._task_M[row] = self._tasks.setdefault(record.task, len(self._tasks))
    self.ids_M[row], self.uses_M[row] = identity, record.use_count
    self.helped_M[row], self.hurt_M[row], self.episode_M[row] = record.helped, record.hurt, record.episode
    self.spacing_M[row], self.nearest_M[row], self.fresh_M[row] = np.nan, -1, True
    self._counts[record.kind] += 1
    self._rows[identity] = row

  def remove(self, ids) -> None:
    """Frees the rows of these records; a range's last row moves into the gap. Unknown ids are ignored."""
    for identity in ids:
      row = self._rows.pop(int(identity), None)
      if row is None:
        continue
      kind = next(kind for kind in KINDS if self.region(kind).start <= row < self.region(kind).stop)
      taken, corrections = self.region(kind), self.region(CORRECTION)
      gap = taken.start if kind == ANCHOR else taken.stop - 1
      self._move(gap, row)
      if kind == FAILURE and self._counts[CORRECTION]:
        self._move(corrections.stop - 1, gap)
        gap = corrections.stop - 1
      self.ids_M[gap] = -1
      self._counts[kind] -= 1

  def count_again(self, identity: int, counters: Counters) -> None:
    """Takes over what the store counts of a record; an unknown id is ignored."""
    row = self._rows.get(identity)
    if row is not None:
      self.uses_M[row], self.helped_M[row], self.hurt_M[row], self.episode_M[row] = counters

  def resized(self, capacity: int) -> "MemoryIndex":
    """Returns an index of another capacity with the same records."""
    other = MemoryIndex(self.header, capacity)
    other._counts, other._tasks = dict(self._counts), dict(self._tasks)
    for kind in KINDS:
      for source, target in zip(self._columns, other._columns):
        target[other.region(kind)] = source[self.region(kind)]
      rows = range(capacity)[other.region(kind)]
      other._rows.update(zip(other.ids_M[other.region(kind)].tolist(), rows))
    return other

  def keys(self, rows) -> np.ndarray:
    """Returns float32[M, E], the keys of these rows as the search sees them."""
    return self._padded_ME[rows, : self.header.key_dim].astype(np.float32)

  def chunks(self, rows) -> tuple[np.ndarray, np.ndarray]:
    """Returns (base, corrected) of these rows in the memory's chunk dtype."""
    return self._base_MTA[rows], self._corrected_MTA[rows]

  def search(self, keys_BE, wanted: Mapping[str, int], task: str | None = None) -> Neighbours:
    """Returns the nearest records of each key, of one task if given.

    Args:
      keys_BE: float32[B, E], C-contiguous, finite.
      wanted: how many of each kind; they come back in this order.
    """
    rows_BK = np.zeros((len(keys_BE), sum(wanted.values())), np.int64)
    distances_BK = np.full(rows_BK.shape, np.inf, np.float32)
    kind_BK = np.full(rows_BK.shape, -1, np.int8)
    first, padded_BE = 0, self._padded(keys_BE)
    for kind, most in wanted.items():
      nearest_BK, apart_BK = self._nearest(padded_BE, kind, most, task)
      slots = np.s_[:, first : first + nearest_BK.shape[1]]
      first += most
      rows_BK[slots], distances_BK[slots], kind_BK[slots] = nearest_BK, apart_BK, KINDS.index(kind)
    mask_BK = kind_BK >= 0
    missing_BK = None if mask_BK.all() else ~mask_BK

    def gathered(column_M, nothing=0, take=operator.getitem):
      values_BK = take(column_M, rows_BK)
      if missing_BK is not None:
        values_BK[missing_BK] = nothing
      return values_BK

    return Neighbours(
      ids_BK=gathered(self.ids_M, -1), distances_BK=distances_BK, base_BKTA=gathered(self._base_MTA, take=_aligned),
      corrected_BKTA=gathered(self._corrected_MTA, take=_aligned), kind_BK=kind_BK,
      helped_BK=gathered(self.helped_M).astype(np.float32), hurt_BK=gathered(self.hurt_M).astype(np.float32),
      episode_BK=gathered(self.episode_M), mask_BK=mask_BK)

  def nearest(self, keys_BE: np.ndarray, kind: str, k: int, task: str | None = None):
    """Returns (rows int64[B, K], L2 distances float32[B, K]) with K at most k, ties by rising id."""
    return self._nearest(self._padded(keys_BE), kind, k, task)

  def _padded(self, keys_BE: np.ndarray) -> np.ndarray:
    """Returns keys as wide as the rows, float32[B, padded E]."""
    padded_BE = np.zeros((len(keys_BE), self._padded_ME.shape[1]), np.float32)
    if len(keys_BE):
      padded_BE[:, : self.header.key_dim] = keys_BE
    return padded_BE

  def _nearest(self, padded_BE: np.ndarray, kind: str, k: int, task: str | None):
    """Returns as `nearest`, of padded keys."""
    parameters, eligible = self._parameters(kind, task)
    k = min(k, eligible)
    if not k or not len(padded_BE):
      return np.zeros((len(padded_BE), 0), np.int64), np.zeros((len(padded_BE), 0), np.float32)
    # A thread inherits OpenMP's default, which is slower than one thread for a single query.
    faiss.omp_set_num_threads(1)
    fetched = min(k + 1, eligible)
    while True:
      squared, rows = _search(self._faiss, padded_BE, fetched, parameters)
      # If the last one fetched is as near as the k-th, equals may be missing and the tie is not decided.
      if fetched == eligible or (squared[:, -1] > squared[:, k - 1]).all():
        break
      fetched = min(2 * fetched, eligible)
    if (squared[:, 1:] > squared[:, :-1]).all():  # no ties
      return rows[:, :k], np.sqrt(squared[:, :k])
    ordered = np.arange(len(rows))[:, None], np.lexsort((self.ids_M[rows], squared), axis=-1)[:, :k]
    return rows[ordered], np.sqrt(squared[ordered])

  def _free_row(self, kind: str) -> int:
    """Returns the row for a new record of a kind; the first correction makes room for a failure."""
    taken, corrections = self.region(kind), self.region(CORRECTION)
    if kind == FAILURE and self._counts[CORRECTION]:
      self._move(corrections.start, corrections.stop)
    return taken.start - 1 if kind == ANCHOR else taken.stop

  def _move(self, source: int, target: int) -> None:
    """Copies a row over another one."""
    if source != target:
      for column in self._columns:
        column[target] = column[source]
      self._rows[int(self.ids_M[target])] = target

  def _parameters(self, kind: str, task: str | None):
    """Returns FAISS's parameters of a search among the records of a kind, and their number."""
    taken = self.region(kind)
    if task is None:
      known, parameters = self._whole.get(kind, (None, None))
      if known != taken:  # made anew only where records came or went
        parameters = _parameters(faiss.IDSelectorRange(taken.start, taken.stop))
        self._whole[kind] = taken, parameters
      return parameters, taken.stop - taken.start
    chosen_M = np.zeros(self.capacity, bool)
    chosen_M[taken] = self._task_M[taken] == self._tasks.get(task, -1)
    bitmap = np.packbits(chosen_M, bitorder="little")
    return _parameters(faiss.IDSelectorBitmap(bitmap)), int(chosen_M.sum())  # pyright: ignore[reportCallIssue]


def _aligned(column_M: np.ndarray, rows_BK: np.ndarray) -> np.ndarray:
  """Returns the rows of a column, in memory that jax takes on a CPU as it is: other arrays it copies."""
  shape = (*rows_BK.shape, *column_M.shape[1:])
  raw = np.empty(math.prod(shape) * column_M.itemsize + JAX_ALIGNMENT, np.uint8)
  first = -raw.ctypes.data % JAX_ALIGNMENT
  taken = raw[first : first + len(raw) - JAX_ALIGNMENT].view(column_M.dtype).reshape(shape)
  return np.take(column_M, rows_BK, axis=0, out=taken, mode="clip")  # with a check of the rows there is one more copy


def _search(index, keys_BE: np.ndarray, k: int, parameters) -> tuple[np.ndarray, np.ndarray]:
  """Returns (squared distances float32[B, k], rows int64[B, k]); FAISS's own wrapper takes as long as 1,000 records.
  """
  squared_BK, rows_BK = np.empty((len(keys_BE), k), np.float32), np.empty((len(keys_BE), k), np.int64)
  index.search_c(len(keys_BE), faiss.swig_ptr(keys_BE), k, faiss.swig_ptr(squared_BK), faiss.swig_ptr(rows_BK),
                 parameters)
  return squared_BK, rows_BK


def _parameters(selector):
  return faiss.SearchParameters(sel=selector)  # pyright: ignore[reportCallIssue]
