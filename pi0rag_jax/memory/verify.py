"""Whether a memory is whole: the file, each record, and the index that is derived from it."""

import contextlib

import numpy as np

from pi0rag_jax.memory import address
from pi0rag_jax.memory import index as index_lib
from pi0rag_jax.memory.record import KINDS, DamagedError
from pi0rag_jax.memory.store import Store

# A search costs about 0.4 ms among 10,000 records: so many are searched for, evenly spread.
_SEARCHED = 500
_LISTED = 20  # ids named per line


def verify(place) -> list[str]:
  """Returns what is wrong with the memory at `place`, one line each; an empty list if it is whole.

  Errors: Pi0RagError if there is no memory.
  """
  problems: list[str] = []
  try:
    store = address.open_store(place, read_only=True)
    with contextlib.closing(store), store.snapshot():
      store.check()
      if not store.sealed():
        problems.append("the header, the count of episodes, ids, counters or tokens are not what was written")
      count = sum(store.breakdown("kind").values())
      sound = store.scan(on_damage=lambda error: problems.append(str(error)))
      index = index_lib.build(store.header, max(1, count), sound)
      return problems or compare(store, index)
  except DamagedError as error:
    return [*problems, str(error)]


def compare(store: Store, index: index_lib.MemoryIndex) -> list[str]:
  """Returns where the index differs from the store: ids, kinds, use counts, keys, chunks, search results."""
  problems, stored = [], set()
  step = max(1, len(index) // _SEARCHED)
  searched = ((identity, record) for identity, record in store.scan() if not record.quarantine)
  for n, (identity, record) in enumerate(searched):
    stored.add(identity)
    if identity not in index:
      continue
    problem = _row_problem(index, identity, record)
    if problem is None and n % step == 0:
      problem = _search_problem(index, identity, record)
    if problem is not None:
      problems.append(f"record {identity}: {problem}")
  indexed = {int(i) for kind in KINDS for i in index.ids_M[index.region(kind)]}
  for ids, place in ((stored - indexed, "store"), (indexed - stored, "index")):
    if ids:
      listed = ", ".join(map(str, sorted(ids)[:_LISTED]))
      problems.append(f"{len(ids)} records are only in the {place}: {listed}")
  return problems


def _row_problem(index: index_lib.MemoryIndex, identity: int, record) -> str | None:
  """Returns what differs between a record and its row, None if nothing does."""
  row = index.row(identity)
  region = index.region(record.kind)
  if not region.start <= row < region.stop:
    return f"is a {record.kind} in the store, not in the index"
  base_TA, corrected_TA = index.chunks(row)
  wanted = (
    ("id", index.ids_M[row], identity),
    ("key", index.keys(row), record.key.astype(np.float16)),
    ("base chunk", base_TA, record.base_chunk),
    ("corrected chunk", corrected_TA, record.corrected_chunk),
    ("use count", index.uses_M[row], record.use_count),
    ("utility", (index.helped_M[row], index.hurt_M[row]), (record.helped, record.hurt)),
    ("episode", index.episode_M[row], record.episode),
  )
  different = [name for name, found, stored in wanted if not np.array_equal(found, stored)]
  return f"{', '.join(different)} in the index not as in the store" if different else None


def _search_problem(index: index_lib.MemoryIndex, identity: int, record) -> str | None:
  """Returns a text if a search for a record's own key does not find that key, None if it does."""
  key_E = index.keys(index.row(identity))
  rows, distances = index.nearest(key_E[None], record.kind, 1)
  if rows.shape[1] == 1 and distances[0, 0] == 0 and np.array_equal(index.keys(rows[0, 0]), key_E):
    return None
  return "a search for its key finds another one"
