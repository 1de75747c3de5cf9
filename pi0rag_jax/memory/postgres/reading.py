"""What is asked of the tables: the records that are present, now or at a version, and what changed since one."""

from collections.abc import Iterator
from typing import Any

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import codec
from pi0rag_jax.memory.postgres.connection import Connection
from pi0rag_jax.memory.record import Header
from pi0rag_jax.memory.store import Change, Counters

# What `breakdown` groups by, in SQL.
GROUPS = {"kind": "kind", "outcome": "outcome", "failure_kind": "failure_kind", "task": "task",
          "source": "provenance ->> 'source'"}
COUNTED = ("use_count", "helped", "hurt", "episode", "quarantine")
_BLOBS = "key, base, corrected"
_FIXED = ("memory", "id", "added", "removed", "erased", *codec.TEXTS, "created", "digest")
# What was counted before the first commit after the version that changed it; where there is none, it is as it was.
_THEN = """
  LEFT JOIN LATERAL (
    SELECT * FROM pi0rag.history h WHERE h.memory = r.memory AND h.id = r.id
      AND h.version > %(version)s AND h.version > r.added AND (r.removed IS NULL OR h.version <= r.removed)
    ORDER BY h.version LIMIT 1) h ON true"""
# In the order of `codec.decode`; JSON as it was written, which the digest is of.
RECORD = ", ".join(("id", *(f"{name}::text" if name == "provenance" else name for name in codec.COLUMNS), _BLOBS))


def present(version: int | None) -> str:
  """Returns the relation of a memory's records, as they are or as they were at a version."""
  if version is None:
    return "(SELECT * FROM pi0rag.records WHERE memory = %(memory)s AND removed IS NULL) records"
  fixed = ", ".join(f"r.{name}" for name in (*_FIXED, *codec.BLOBS))
  counted = ", ".join(f"COALESCE(h.{name}, r.{name}) AS {name}" for name in COUNTED)
  return (f"(SELECT {fixed}, {counted} FROM pi0rag.records r {_THEN} WHERE r.memory = %(memory)s "
          "AND r.added <= %(version)s AND (r.removed IS NULL OR r.removed > %(version)s)) records")


def decoded(connection: Connection, query: str, asked: dict[str, Any], header: Header) -> Iterator[tuple]:
  """Yields (id, Record) of a query for RECORD. Errors: DamagedError."""
  for row in connection.cursor(binary=True).execute(query, asked):
    yield codec.decode(row, header)


def clock(connection: Connection, memory: int, version: int | None) -> tuple[int, int]:
  """Returns (episodes, successes) that are counted, or were at a version."""
  if version is None:
    query = "SELECT episodes, successes FROM pi0rag.memories WHERE id = %s"
    return connection.execute(query, (memory,)).fetchone() or (0, 0)
  query = "SELECT episodes, successes FROM pi0rag.commits WHERE memory = %s AND version = %s"
  return connection.execute(query, (memory, version)).fetchone() or (0, 0)


def head(connection: Connection, memory: int) -> int:
  """Returns the last version. Errors: Pi0RagError if the memory was deleted."""
  found = connection.execute("SELECT version FROM pi0rag.memories WHERE id = %s", (memory,)).fetchone()
  if found is None:
    raise Pi0RagError("the memory is no longer on its server: somebody deleted it")
  return found[0]


def change(connection: Connection, memory: int, since: int, header: Header) -> Change:
  """Returns what happened after a version; the caller sees to it that all of it is read at one moment."""
  asked: dict[str, Any] = {"memory": memory, "since": since}
  removed = [row[0] for row in connection.execute(
    "SELECT id FROM pi0rag.records WHERE memory = %(memory)s AND removed > %(since)s AND added <= %(since)s", asked)]
  counters, apart, released = {}, [], []
  query = ("SELECT r.id, r.use_count, r.helped, r.hurt, r.episode, r.quarantine, h.quarantine FROM pi0rag.records r "
           "JOIN (SELECT DISTINCT ON (id) id, quarantine FROM pi0rag.history WHERE memory = %(memory)s AND "
           "version > %(since)s ORDER BY id, version) h ON h.id = r.id "
           "WHERE r.memory = %(memory)s AND r.removed IS NULL AND r.added <= %(since)s")
  for identity, *counted, now, before in connection.execute(query, asked):
    counters[identity] = Counters(*counted)
    if now:
      apart.append(identity)
    elif before:
      released.append(identity)
  query = (f"SELECT {RECORD} FROM pi0rag.records WHERE memory = %(memory)s AND removed IS NULL "
           "AND (added > %(since)s OR id = ANY(%(released)s)) ORDER BY id")
  added = list(decoded(connection, query, asked | {"released": released}, header))
  return Change(clock(connection, memory, None), [*removed, *apart], counters, added)


def lag_s(connection: Connection, memory: int, version: int) -> float:
  """Returns how long ago a version was committed, by the server's clock alone."""
  query = ("SELECT EXTRACT(EPOCH FROM clock_timestamp() - committed)::float8 FROM pi0rag.commits WHERE memory = %s "
           "AND version = %s")
  return (connection.execute(query, (memory, version)).fetchone() or (0.0,))[0]


def problems(connection: Connection, memory: int) -> list[str]:
  """Returns where the tables contradict each other, one line each."""
  version, last_id, episodes, successes = connection.execute(
    "SELECT version, last_id, episodes, successes FROM pi0rag.memories WHERE id = %s", (memory,)).fetchone() or (0,) * 4
  commits, newest, ended, succeeded = connection.execute(
    "SELECT COUNT(*), COALESCE(MAX(version), 0), COALESCE(SUM(ended) FILTER (WHERE kind <> 'undone'), 0), "
    "COALESCE(SUM(succeeded) FILTER (WHERE kind <> 'undone'), 0) FROM pi0rag.commits WHERE memory = %s",
    (memory,)).fetchone() or (0,) * 4
  largest, late = connection.execute(
    "SELECT COALESCE(MAX(id) FILTER (WHERE removed IS NULL), 0), COUNT(*) FILTER (WHERE added > %s OR removed > %s) "
    "FROM pi0rag.records WHERE memory = %s", (version, version, memory)).fetchone() or (0,) * 2
  found = []
  if commits != version or newest != version:
    found.append(f"its versions have gaps: {commits} commits up to {newest}, it says {version}")
  if (ended, succeeded) != (episodes, successes):
    found.append(f"its clock says {episodes} episodes, {successes} of them good, its commits {ended} and {succeeded}")
  if largest > last_id:
    found.append(f"record {largest} has an id after the last one, {last_id}")
  if late:
    found.append(f"{late} records are of versions after the last one, {version}")
  return found
