"""What people want to know of a memory: its episodes, its records page by page, a map of its keys, who lies near whom.

A survey reads the file alone, one moment of it per call, whoever writes it meanwhile: it takes no lock, so that a
policy that is served from the same memory never waits for it. What it returns is plain JSON of bounded size.
"""

import bisect
import contextlib
import dataclasses
import itertools
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.memory import address, codec, schema, seal, tokens
from pi0rag_jax.memory.mirror import Mirror
from pi0rag_jax.memory.record import CORRECTION, KINDS

QUESTIONS = ("overview", "episodes", "records", "record", "map")
RECORDS_PER_PAGE, EPISODES_PER_PAGE = 50, 12
SERIES_POINTS, MAP_POINTS, NEIGHBOURS, SEGMENTS = 200, 800, 10, 64
# How an episode ended for the policy: by itself, with help, in vain, or nobody can say since its records are gone.
ALONE, HELPED, FAILED, UNKNOWN = ENDS = ("alone", "helped", "failed", "unknown")
SORTS = {"newest": "id DESC", "oldest": "id", "helped": "helped DESC, id", "hurt": "hurt DESC, id",
         "used": "use_count DESC, id"}
_SHOWN_CHUNK = (64, 16)  # ticks and entries
_SHOWN_TEXT = 200  # characters
_KEYS_AT_A_TIME = 4096
_POLICY = "policy"
_SAID = ("source", "robot", "note", "tick", "labelled")  # of a record's provenance


@dataclasses.dataclass(frozen=True)
class EpisodeSummary:
  """What the memory knows of an episode."""

  name: str
  end: str  # one of ENDS
  undoable: bool = False
  task: str = ""
  robot: str = ""
  note: str = ""
  created: float = 0.0  # s since 1970; 0 where no record says it
  records: int = 0
  corrections: int = 0
  helped: float = 0.0
  hurt: float = 0.0
  labels: int = 0  # records that people made of its moments afterwards
  ids: tuple[int, int] = (1, 0)  # the first and the last that are left


class Survey:
  """Reads the memory in a folder, or one on a server by a mirror of it.

  Errors of all methods: Pi0RagError for a memory that is missing, foreign or damaged.
  """

  def __init__(self, directory):
    place = address.locate(directory)
    self._mirror = None if isinstance(place, Path) else Mirror(place)
    self.path = schema.locate(place) if self._mirror is None else self._mirror.path
    self._known: dict[str, tuple[Any, Any]] = {}  # name -> (state of the file, what was made of it)
    with schema.snapshot(self.path) as connection:
      schema.read_header(connection, self.path)

  def ask(self, name: str, **asked: Any) -> dict[str, Any]:
    """Returns what the method of this name does, one of QUESTIONS."""
    if name not in QUESTIONS:
      raise unknown_name("question", name, QUESTIONS)
    return getattr(self, name)(**asked)

  def close(self) -> None:
    """Ends following a memory on a server; of a file nothing stays open."""
    if self._mirror is not None:
      self._mirror.close()

  def overview(self) -> dict[str, Any]:
    """Returns header, clock, counts by group, and how the episodes ended over time."""
    with schema.snapshot(self.path) as connection:
      return self._once("overview", connection, lambda: self._overview(connection))

  def _overview(self, connection: sqlite3.Connection) -> dict[str, Any]:
    header = dataclasses.asdict(schema.read_header(connection, self.path))
    clock = dict(connection.execute("SELECT name, value FROM header"))
    groups = {name: _groups(connection, name) for name in schema.GROUPS}
    uses = connection.execute(f"SELECT COUNT(*), SUM(helped > hurt), SUM(hurt > helped), SUM(use_count > 0) FROM "
                              f"({_relation(connection)})").fetchone()
    names = ("records", "helpful", "harmful", "used")
    return {"header": header, **{name: int(clock.get(name, 0)) for name in schema.CLOCK}, "groups": groups,
            **{name: count or 0 for name, count in zip(names, uses)}, "series": _series(self._summaries(connection))}

  def episodes(self, page: int = 0) -> dict[str, Any]:
    """Returns a page of the episodes, the last first, each with who acted when."""
    with schema.snapshot(self.path) as connection:
      summaries = self._summaries(connection)
      newest = summaries[::-1][page * EPISODES_PER_PAGE : (page + 1) * EPISODES_PER_PAGE]
      rows = [dataclasses.asdict(episode) | {"acted": _acted(connection, episode)} for episode in newest]
    return {"total": len(summaries), "page": page, "per_page": EPISODES_PER_PAGE, "episodes": rows}

  def records(self, *, kind: str = "", task: str | None = None, episode: str = "", sort: str = "newest",
              page: int = 0) -> dict[str, Any]:
    """Returns a page of the records of a kind, a task and an episode; '' and None are all of them."""
    if sort not in SORTS:
      raise unknown_name("order", sort, SORTS)
    where, values = _where(kind, task, episode)
    with schema.snapshot(self.path) as connection:
      relation = f"FROM ({_relation(connection)}) {where}"
      total = connection.execute(f"SELECT COUNT(*) {relation}", values).fetchone()[0]
      query = f"SELECT * {relation} ORDER BY {SORTS[sort]} LIMIT ? OFFSET ?"
      rows = _dicts(connection.execute(query, (*values, RECORDS_PER_PAGE, page * RECORDS_PER_PAGE)))
    return {"total": total, "page": page, "per_page": RECORDS_PER_PAGE, "records": rows}

  def record(self, identity: int) -> dict[str, Any]:
    """Returns one record with its chunks and its nearest neighbours, by the L2 distance of their keys."""
    with schema.snapshot(self.path) as connection:
      header = schema.read_header(connection, self.path)
      found = _one(connection, identity)
      key, base, corrected = connection.execute("SELECT key, base, corrected FROM arrays WHERE id = ?",
                                                (identity,)).fetchone() or (b"", b"", b"")
      key_E = _keys([key], header.key_dim)[0]
      near = [_one(connection, other) | {"distance": distance}
              for other, distance in _nearest(connection, key_E, besides=identity)]
    chunk_dtype = np.dtype(header.chunk_dtype).newbyteorder("<")
    chunks = {name: _shown_chunk(np.frombuffer(blob, chunk_dtype), header.chunk_shape)
              for name, blob in (("base", base), ("corrected", corrected))}
    return {"record": found, **chunks, "neighbours": near}

  def map(self, *, kind: str = "", task: str | None = None, chosen: int | None = None) -> dict[str, Any]:
    """Returns records on the two axes along which their keys differ most; of many an even sample, and the chosen one.
    """
    where, values = _where(kind, task)
    with schema.snapshot(self.path) as connection:
      header = schema.read_header(connection, self.path)
      relation = f"FROM ({_relation(connection)}) {where}"
      ids = [row[0] for row in connection.execute(f"SELECT id {relation} ORDER BY id", values)]
      shown = {ids[at] for at in np.linspace(0, len(ids) - 1, min(len(ids), MAP_POINTS)).astype(int)} if ids else set()
      sample = sorted(shown)
      mean_E, axes_E2, share_2 = self._once(
        "axes", connection, lambda: _axes(_keys_of(connection, sample, header.key_dim)), where, *values)
      if chosen is not None and ids and ids[bisect.bisect_left(ids, chosen) % len(ids)] == chosen:
        shown.add(chosen)
      points_N2 = (_keys_of(connection, sorted(shown), header.key_dim) - mean_E) @ axes_E2
      rows = [_one(connection, identity) for identity in sorted(shown)]
    names = ("id", "kind", "task", "helped", "hurt")
    points = [{name: row[name] for name in names} | {"x": round(float(x), 5), "y": round(float(y), 5)}
              for row, (x, y) in zip(rows, points_N2)]
    return {"total": len(ids), "explained": [round(float(share), 4) for share in share_2], "points": points}

  def _summaries(self, connection: sqlite3.Connection) -> list[EpisodeSummary]:
    """Returns all episodes in the order of their commits."""
    return self._once("episodes", connection, lambda: list(_episodes(connection)))

  def _once(self, name: str, connection: sqlite3.Connection, make: Callable[[], Any], *asked) -> Any:
    """Returns what was made last under a name, made anew where something was written, or else is asked, since."""
    state = seal.commits(connection), self.path.stat().st_mtime_ns, *asked
    if self._known.get(name, (None,))[0] != state:
      self._known[name] = state, make()
    return self._known[name][1]


def _relation(connection: sqlite3.Connection) -> str:
  """Returns the query of all that is small of a record; what an older file lacks is zero or empty."""
  lacking = schema.ADDED.keys() - schema.columns(connection, "records")
  added = ", ".join(f"{schema.lacking(name)} AS {name}" if name in lacking else name
                    for name in ("helped", "hurt", "quarantine"))
  name = "COALESCE(json_extract(provenance, '$.episode'), 'seed ' || json_extract(provenance, '$.seed'), '')"
  said = ", ".join(f"json_extract(provenance, '$.{key}') AS {key}" for key in _SAID)
  undoable = "json_type(provenance, '$.episode') IS 'text' AS undoable"
  return (f"SELECT id, kind, outcome, failure_kind, task, prompt, use_count, created, {added}, {name} AS episode, "
          f"{said}, {undoable} FROM records")


def _where(kind: str, task: str | None, episode: str = "") -> tuple[str, tuple]:
  """Returns the SQL condition of what is asked for, and its values."""
  if kind and kind not in KINDS:
    raise unknown_name("kind", kind, KINDS)
  asked = {"kind": kind or None, "task": task, "episode": episode or None}
  given = {name: value for name, value in asked.items() if value is not None}
  return f"WHERE {' AND '.join(f'{name} = ?' for name in given)}" if given else "", tuple(given.values())


def _dicts(cursor: sqlite3.Cursor) -> list[dict[str, Any]]:
  """Returns rows by the names of their columns, texts cut."""
  names = [column[0] for column in cursor.description]
  return [{name: value[:_SHOWN_TEXT] if isinstance(value, str) else value for name, value in zip(names, row)}
          for row in cursor]


def _one(connection: sqlite3.Connection, identity: int) -> dict[str, Any]:
  found = _dicts(connection.execute(f"{_relation(connection)} WHERE id = ?", (identity,)))
  if not found:
    raise Pi0RagError(f"there is no record {identity}: it was evicted, or never there")
  return found[0]


def _groups(connection: sqlite3.Connection, name: str) -> list[tuple[str, int]]:
  """Returns the largest groups of records by one of `schema.GROUPS`."""
  query = (f"SELECT {schema.GROUPS[name]} AS value, COUNT(*) AS many FROM records GROUP BY value "
           "ORDER BY many DESC LIMIT 50")
  return [(str(value or "")[:_SHOWN_TEXT], many) for value, many in connection.execute(query)]


def _episodes(connection: sqlite3.Connection) -> Iterator[EpisodeSummary]:
  """Yields what was added together, in the order of the commits, and what was added without saying so."""
  query = ("SELECT episode AS name, MIN(undoable) AS undoable, MAX(task) AS task, MAX(robot) AS robot, "
           "MAX(note) AS note, MIN(created) AS created, COUNT(*) AS records, "
           f"SUM(kind = '{CORRECTION}') AS corrections, SUM(labelled IS NOT NULL) AS labels, SUM(helped) AS helped, "
           f"SUM(hurt) AS hurt, MIN(id) AS first, MAX(id) AS last "
           f"FROM ({_relation(connection)}) GROUP BY episode ORDER BY first")
  groups = {row.pop("first"): row for row in _dicts(connection.execute(query))}
  firsts = list(groups)
  named = {row["name"]: first for first, row in groups.items() if row["undoable"]}
  for name, first, last in _batches(connection):
    at = bisect.bisect_left(firsts, first)
    if at < len(firsts) and firsts[at] <= last and firsts[at] in groups:
      yield _summary(firsts[at], groups.pop(firsts[at]))
    elif named.get(name) in groups:  # all that is left of it are labels
      yield _summary(named[name], groups.pop(named[name]))
    else:
      yield EpisodeSummary(name, FAILED if last < first else UNKNOWN)
  yield from itertools.starmap(_summary, groups.items())


def _batches(connection: sqlite3.Connection) -> list[tuple[str, int, int]]:
  """Returns (name, first id, last id) of what was added with tokens. Labels are left out, which belong to their
  episodes, and a stream's end, which belongs to its lesson.
  """
  order = [name for name in ("number", "first_id") if name in schema.columns(connection, "batches")]
  rows = connection.execute(f"SELECT token, first_id, last_id FROM batches ORDER BY {', '.join(order)}").fetchall()
  found = {token for token, _, _ in rows}
  return [(token.removeprefix("episode ")[:_SHOWN_TEXT], first, last) for token, first, last in rows
          if not (tokens.is_label(token) or (token.endswith(" ended") and token.removesuffix(" ended") in found))]


def _summary(first: int, row: Mapping[str, Any]) -> EpisodeSummary:
  values = {name: value for name, value in row.items() if value is not None and name != "last"}
  values |= {"name": str(row["name"]), "undoable": bool(row["undoable"])}
  # Labels do not say how it ended, but nothing else is left of one that failed.
  end = HELPED if row["corrections"] > row["labels"] or row["records"] == row["labels"] else ALONE
  return EpisodeSummary(**values, ids=(first, row["last"]), end=end)


def _series(episodes: list[EpisodeSummary]) -> list[dict[str, Any]]:
  """Returns how many of the episodes ended how, in as many equal stretches as a chart can show."""
  edges = np.linspace(0, len(episodes), min(len(episodes), SERIES_POINTS) + 1).astype(int)
  ends = [episode.end for episode in episodes]
  return [{"episode": int(stop), "created": max(episode.created for episode in episodes[start:stop])}
          | {end: ends[start:stop].count(end) for end in ENDS} for start, stop in itertools.pairwise(edges)]


def _acted(connection: sqlite3.Connection, episode: EpisodeSummary) -> list[tuple[int, str]]:
  """Returns (tick, who) wherever somebody else begins to act, as the records tell; those before a take-over are of the
  policy's moments.
  """
  query = (f"SELECT tick, kind = '{CORRECTION}' AND outcome = 'success', source FROM ({_relation(connection)}) "
           "WHERE id BETWEEN ? AND ? AND episode = ? AND tick IS NOT NULL ORDER BY tick")
  rows = connection.execute(query, (*episode.ids, episode.name))
  told = [(int(tick), str(source) if helped else _POLICY) for tick, helped, source in rows]
  changes = [pair for before, pair in itertools.pairwise([(-1, ""), *told]) if before[1] != pair[1]]
  return changes[:SEGMENTS] + ([(told[-1][0], "")] if told else [])


def _keys(blobs, key_dim: int) -> np.ndarray:
  """Returns float32[N, E] of stored keys; one that is damaged is zero, `verify` names it."""
  rows = [np.frombuffer(blob, codec.KEY_DTYPE) if len(blob) == key_dim * codec.KEY_DTYPE.itemsize
          else np.zeros(key_dim, np.float32) for blob in blobs]
  return np.nan_to_num(np.stack(rows)) if rows else np.zeros((0, key_dim), np.float32)


def _keys_of(connection: sqlite3.Connection, ids: list[int], key_dim: int) -> np.ndarray:
  blobs = [connection.execute("SELECT key FROM arrays WHERE id = ?", (identity,)).fetchone() for identity in ids]
  return _keys([row[0] if row else b"" for row in blobs], key_dim)


def _nearest(connection: sqlite3.Connection, key_E: np.ndarray, *, besides: int) -> list[tuple[int, float]]:
  """Returns (id, distance) of the records next to a key, the nearest first."""
  cursor = connection.execute("SELECT id, key FROM arrays WHERE id <> ?", (besides,))
  best: list[tuple[float, int]] = []
  with contextlib.closing(cursor):
    while rows := cursor.fetchmany(_KEYS_AT_A_TIME):
      apart_N = np.linalg.norm(_keys([blob for _, blob in rows], len(key_E)) - key_E, axis=1)
      nearest = np.argsort(apart_N, kind="stable")[:NEIGHBOURS]
      best = sorted([*best, *((float(apart_N[at]), rows[at][0]) for at in nearest)])[:NEIGHBOURS]
  return [(identity, round(distance, 5)) for distance, identity in best]


def _axes(keys_ME: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the keys' mean float[E], the two main axes float[E, 2], and the shares of the variance along them."""
  mean_E = keys_ME.mean(axis=0) if len(keys_ME) else np.zeros(keys_ME.shape[1])
  centred_ME = keys_ME - mean_E
  by_rows = len(centred_ME) < centred_ME.shape[1]
  values, vectors = np.linalg.eigh(centred_ME @ centred_ME.T if by_rows else centred_ME.T @ centred_ME)
  axes = np.zeros((2, keys_ME.shape[1]))
  for place, vector in enumerate(vectors.T[::-1][:2]):
    axis_E = centred_ME.T @ vector if by_rows else vector
    length = np.linalg.norm(axis_E)
    # An axis has no sign of its own: its largest entry is made positive, so that a map looks the same every time.
    axes[place] = axis_E / length * np.sign(axis_E[np.abs(axis_E).argmax()]) if length > 0 else 0.0
  largest_2 = np.append(values[::-1], [0.0, 0.0])[:2]
  return mean_E, axes.T, np.maximum(largest_2, 0.0) / max(float(values.sum()) if len(values) else 0.0, 1e-12)


def _shown_chunk(flat: np.ndarray, shape: tuple[int, int]) -> list[list[float]]:
  """Returns the beginning of a chunk, its numbers rounded; nothing of one that is damaged."""
  if flat.size != shape[0] * shape[1]:
    return []
  chunk_TA = flat.reshape(shape)[: _SHOWN_CHUNK[0], : _SHOWN_CHUNK[1]].astype(float)
  return [[round(value, 5) for value in row] for row in np.nan_to_num(chunk_TA).tolist()]
