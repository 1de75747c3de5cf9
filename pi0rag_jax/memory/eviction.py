"""Which records to give up: failures before anchors before corrections; in each kind near-duplicates first, then the
least used, then the oldest.

A record's spacing is the L2 distance of its key to the nearest one of the same kind. It is kept in the
index's arrays and brought up to date only when an eviction needs it: 2 ms per new record among 10,000.
"""

from collections.abc import Sequence

import numpy as np

from pi0rag_jax.memory.index import MemoryIndex
from pi0rag_jax.memory.record import ANCHOR, CORRECTION, FAILURE

_BLOCK = 256
# With more new records than this share, searching once for every record costs less than comparing each.
_REBUILD_SHARE = 1 / 8


def choose(index: MemoryIndex, overflow: int, incoming: Sequence[str]) -> tuple[list[int], list[int]]:
  """Returns (ids to evict, places of incoming records to refuse) so that `overflow` records go.

  Failures go first, few rules read them; then anchors; of both the incoming ones too. Corrections go only when
  nothing else is left.

  Args:
    incoming: the kinds of the records to be added.
  """
  ids: list[int] = []
  refused: list[int] = []
  for kind in (FAILURE, ANCHOR):
    ids += crowded(index, kind, overflow - len(ids) - len(refused))
    places = [i for i, other in enumerate(incoming) if other == kind]
    refused += places[: overflow - len(ids) - len(refused)]
  return ids + crowded(index, CORRECTION, overflow - len(ids) - len(refused)), refused


def crowded(index: MemoryIndex, kind: str, most: int, below: float | None = None) -> list[int]:
  """Returns up to `most` ids in the order of eviction, with a spacing of less than `below` if given.

  After each one the spacing of those that had it as their nearest is measured again.
  """
  if most <= 0:
    return []
  refresh(index, kind)
  taken = index.region(kind)
  ids, uses = index.ids_M[taken], index.uses_M[taken]
  spacing, nearest = index.spacing_M[taken].copy(), index.nearest_M[taken].copy()
  gone = np.zeros(len(ids), bool)
  chosen: list[int] = []
  while len(chosen) < min(most, len(ids)):
    left = np.flatnonzero(~gone)
    closest = left[spacing[left] == spacing[left].min()]
    pick = closest[np.lexsort((ids[closest], uses[closest]))[0]]
    if below is not None and spacing[pick] >= below:
      break
    gone[pick] = True
    chosen.append(int(ids[pick]))
    for orphan in np.flatnonzero((nearest == ids[pick]) & ~gone):
      spacing[orphan], nearest[orphan] = _next_nearest(index, kind, int(orphan), gone)
  return chosen


def refresh(index: MemoryIndex, kind: str) -> None:
  """Brings spacing and nearest id of all records of a kind up to date."""
  taken = index.region(kind)
  rows = np.arange(taken.start, taken.stop)
  fresh = rows[index.fresh_M[taken]]
  if len(fresh) > _REBUILD_SHARE * len(rows):
    _measure(index, kind, rows)
  else:
    for row in fresh:
      _compare(index, kind, int(row))
    known = np.isin(index.nearest_M[taken], index.ids_M[taken])
    _measure(index, kind, rows[~known | np.isnan(index.spacing_M[taken])])
  index.fresh_M[taken] = False


def _compare(index: MemoryIndex, kind: str, row: int) -> None:
  """Measures a new row against all others, and those that it is the nearest of."""
  rows, distances = index.nearest(index.keys([row]), kind, index.count(kind))
  others = rows[0] != row
  rows, distances = rows[0][others], distances[0][others]
  if not len(rows):
    return
  index.spacing_M[row], index.nearest_M[row] = distances[0], index.ids_M[rows[0]]
  closer = ~(index.spacing_M[rows] <= distances)  # true for NaN too
  index.spacing_M[rows[closer]], index.nearest_M[rows[closer]] = distances[closer], index.ids_M[row]


def _measure(index: MemoryIndex, kind: str, rows: np.ndarray) -> None:
  """Searches the nearest other record of each row."""
  for first in range(0, len(rows), _BLOCK):
    block = rows[first : first + _BLOCK]
    found, distances = index.nearest(index.keys(block), kind, 2)
    for row, near, distance in zip(block, found, distances):
      other = np.flatnonzero(near != row)
      index.spacing_M[row] = distance[other[0]] if len(other) else np.inf
      index.nearest_M[row] = index.ids_M[near[other[0]]] if len(other) else -1


def _next_nearest(index: MemoryIndex, kind: str, position: int, gone: np.ndarray) -> tuple[float, int]:
  """Returns (distance, id) of the nearest record that is not gone, for one position in the kind's range."""
  start = index.region(kind).start
  rows, distances = index.nearest(index.keys([start + position]), kind, 2 + int(gone.sum()))
  for row, distance in zip(rows[0], distances[0]):
    if row != start + position and not gone[row - start]:
      return float(distance), int(index.ids_M[row])
  return np.inf, -1
