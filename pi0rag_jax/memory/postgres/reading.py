"""What is asked of the tables: the records that are present, now or at a version, and what changed since one."""

import operator
from typing import NamedTuple

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import codec
from pi0rag_jax.memory.postgres.connection import Connection
from pi0rag_jax.memory.record import Header
from pi0rag_jax.memory.store import Change, Counters

# What `breakdown` groups by, in SQL.
GROUPS = {"kind": "kind", "outcome": "outcome", "failure_kind": "failure_kind", "task": "task",
          "source": "provenance ->> 'source'"}
COUNTED = ("use_count", "helped", "hurt", "episode", "quarantine")
_NOTHING = -1  # before the first version
ONE_MOMENT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
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


# What happened since a version: who went, what was counted of those who stayed, and who came, or was released.
_HEAD = """
  SELECT m.version, m.oldest, m.episodes, m.successes,
    COALESCE(EXTRACT(EPOCH FROM clock_timestamp() - c.committed), 0)::float8
  FROM pi0rag.memories m LEFT JOIN pi0rag.commits c ON c.memory = m.id AND c.version = m.version
  WHERE m.id = %(memory)s"""
_REMOVED = "SELECT id FROM pi0rag.records WHERE memory = %(memory)s AND removed > %(since)s AND added <= %(since)s"
# Lists of ids, which an index looks up one by one, and nothing in an order: joined or sorted, all records of the memory
# would be read.
_COUNTED = """
  SELECT id, use_count, helped, hurt, episode, quarantine FROM pi0rag.records
  WHERE memory = %(memory)s AND removed IS NULL AND added <= %(since)s
    AND id = ANY(ARRAY(SELECT id FROM pi0rag.history WHERE memory = %(memory)s AND version > %(since)s))"""
_ADDED = f"""
  SELECT {RECORD} FROM pi0rag.records WHERE memory = %(memory)s AND removed IS NULL AND added > %(since)s
  UNION ALL
  SELECT {RECORD} FROM pi0rag.records
  WHERE memory = %(memory)s AND removed IS NULL AND added <= %(since)s AND quarantine = '' AND id = ANY(ARRAY(
    SELECT id FROM pi0rag.history WHERE memory = %(memory)s AND version > %(since)s AND quarantine <> ''))"""


def present(version: int | None) -> str:
  """Returns the relation of a memory's records, as they are or as they were at a version."""
  if version is None:
    return "(SELECT * FROM pi0rag.records WHERE memory = %(memory)s AND removed IS NULL) records"
  fixed = ", ".join(f"r.{name}" for name in (*_FIXED, *codec.BLOBS))
  counted = ", ".join(f"COALESCE(h.{name}, r.{name}) AS {name}" for name in COUNTED)
  return (f"(SELECT {fixed}, {counted} FROM pi0rag.records r {_THEN} WHERE r.memory = %(memory)s "
          "AND r.added <= %(version)s AND (r.removed IS NULL OR r.removed > %(version)s)) records")


def clock(connection: Connection, memory: int, version: int | None) -> tuple[int, int]:
  """Returns (episodes, successes) that are counted, or were at a version."""
  if version is None:
    query = "SELECT episodes, successes FROM pi0rag.memories WHERE id = %s"
    return connection.execute(query, (memory,)).fetchone() or (0, 0)
  query = "SELECT episodes, successes FROM pi0rag.commits WHERE memory = %s AND version = %s"
  return connection.execute(query, (memory, version)).fetchone() or (0, 0)


def versions(connection: Connection, memory: int) -> tuple[int, int]:
  """Returns the first version that can be read, and the last one. Errors: Pi0RagError if the memory was deleted."""
  found = connection.execute("SELECT oldest, version FROM pi0rag.memories WHERE id = %s", (memory,)).fetchone()
  if found is None:
    raise _gone()
  return found


class News(NamedTuple):
  """What happened after a version."""

  version: int  # the last one
  lag_s: float  # since it was committed, by the server's clock alone
  change: Change


def news(connection: Connection, memory: int, since: int, header: Header, *, alone: bool) -> News | None:
  """Returns what happened after a version, None where nothing did; in one way to the server and back.

  Args:
    alone: in a transaction of its own, so that all of it is of one moment; otherwise the caller has one.
  Errors: Pi0RagError if the memory was deleted; DamagedError for a damaged record.
  """
  asked = {"memory": memory, "since": since}
  with connection.pipeline():
    if alone:
      connection.execute(ONE_MOMENT)
    head = connection.execute(_HEAD, asked)
    removed = connection.execute(_REMOVED, asked)
    counted = connection.execute(_COUNTED, asked)
    added = connection.cursor(binary=True).execute(_ADDED, asked)
    if alone:
      connection.execute("COMMIT")
  found = head.fetchone()
  if found is None:
    raise _gone()
  version, oldest, episodes, successes, lag_s = found
  if version == since:
    return None
  if since < oldest and since >= 0:  # who went before that is no longer known
    return news(connection, memory, _NOTHING, header, alone=alone)
  counters, apart = {}, []
  for identity, *counts, quarantine in counted:
    counters[identity] = Counters(*counts)
    if quarantine:
      apart.append(identity)
  gone = [identity for (identity,) in removed] + apart
  records = [codec.decode(row, header) for row in sorted(added, key=operator.itemgetter(0))]
  return News(version, lag_s, Change((episodes, successes), gone, counters, records, whole=since == _NOTHING))


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


def _gone() -> Pi0RagError:
  return Pi0RagError("the memory is no longer on its server: somebody deleted it")
