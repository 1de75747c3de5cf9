"""What a commit does, inside its transaction and under the memory's lock: nobody else commits meanwhile."""

import dataclasses
import itertools
import socket
from collections.abc import Sequence
from typing import Any

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import codec
from pi0rag_jax.memory.postgres.connection import Connection
from pi0rag_jax.memory.postgres.reading import COUNTED
from pi0rag_jax.memory.postgres.schema import LOCKS
from pi0rag_jax.memory.record import DamagedError
from pi0rag_jax.memory.store import Contents

# Kinds of commits. After one of FINAL nothing before it can be taken back.
ADD, REMOVE, USES, UNDO, UNDONE, QUARANTINE, FILL = "add", "remove", "uses", "undo", "undone", "quarantine", "fill"
FINAL = (ADD, REMOVE, FILL)
_COLUMNS = ("memory", "id", "added", *codec.COLUMNS, *codec.BLOBS)
_INSERT = (f"INSERT INTO pi0rag.records ({', '.join(_COLUMNS)}) VALUES ({', '.join(['%s'] * len(_COLUMNS))})")
_ERASED = ("erased = true, outcome = '', failure_kind = '', task = '', prompt = '', provenance = '{}', created = 0, "
           "digest = '', key = '', base = '', corrected = ''")
_COMMIT = ("memory", "version", "kind", "call", "token", "digest", "first_id", "last_id", "ended", "succeeded",
           "episodes", "successes", "writer")


@dataclasses.dataclass
class Commit:
  """The commit under way: what it is numbered, and what the memory says of itself after it."""

  connection: Connection
  memory: int
  version: int
  last_id: int
  episodes: int
  successes: int
  token: str | None = None
  digest: bytes = b""
  span: tuple[int, int] = (1, 0)  # first and last id of its records
  ended: int = 0
  succeeded: int = 0

  def execute(self, query: str, *values: Any, **named: Any):
    """Runs one statement."""
    return self.connection.execute(query, named or values)

  def many(self, query: str, rows: Sequence[Sequence[Any]]) -> None:
    """Runs a statement for each of the rows."""
    with self.connection.cursor() as cursor:
      cursor.executemany(query, rows)


def begin(connection: Connection, memory: int, token: str | None, digest: bytes) -> Commit:
  """Returns the commit that comes next; from here to the transaction's end the memory is locked.

  A lock and not a sequence: numbers of a sequence show in another order than they were given, and leave gaps.
  """
  connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCKS, memory))
  row = connection.execute("SELECT version + 1, last_id, episodes, successes FROM pi0rag.memories WHERE id = %s",
                           (memory,)).fetchone()
  if row is None:
    raise Pi0RagError("the memory is no longer on its server: somebody deleted it")
  version, last_id, episodes, successes = row
  return Commit(connection, memory, version, last_id, episodes, successes, token, digest)


def seen(commit: Commit, call) -> range | None:
  """Returns the ids of a call that was committed before, or of another one with its token; None if there was none."""
  row = commit.execute("SELECT first_id, last_id, digest, token, call = %s AS ours FROM pi0rag.commits "
                       "WHERE memory = %s AND (call = %s OR token = %s) ORDER BY ours DESC LIMIT 1",
                       call, commit.memory, call, commit.token).fetchone()
  if row is None:
    return None
  first, last, digest, token, ours = row
  if not ours and digest != commit.digest:
    raise Pi0RagError(f"the token '{token}' was used for other records: use one token per batch")
  return range(first, last + 1)


def finish(commit: Commit, kind: str, call) -> None:
  """Writes what the commit was, and wakes everybody who follows once it is durable."""
  values = (commit.memory, commit.version, kind, call, commit.token, commit.digest, *commit.span, commit.ended,
            commit.succeeded, commit.episodes, commit.successes, socket.gethostname())
  with commit.connection.pipeline():  # one way to the server and back: others wait for the lock
    commit.execute(f"INSERT INTO pi0rag.commits ({', '.join(_COMMIT)}) VALUES ({', '.join(['%s'] * len(_COMMIT))})",
                   *values)
    commit.execute("UPDATE pi0rag.memories SET version = %s, last_id = %s, episodes = %s, successes = %s WHERE id = %s",
                   commit.version, commit.last_id, commit.episodes, commit.successes, commit.memory)
    commit.execute("SELECT pg_notify(%s, %s)", channel(commit.memory), str(commit.version))


def channel(memory: int) -> str:
  """Returns the name under which changes of a memory are told."""
  return f"pi0rag_{memory}"


def count(commit: Commit, outcomes) -> None:
  """Counts episodes for or against the records that had a say in them."""
  _keep(commit, sorted({identity for says, _ in outcomes for identity in says}))
  for says, success in outcomes:
    commit.ended, commit.succeeded = commit.ended + 1, commit.succeeded + success
    commit.episodes, commit.successes = commit.episodes + 1, commit.successes + success
    rows = [(say, commit.memory, identity) for identity, say in says.items()]
    change = f"helped = helped + %s, episode = {commit.episodes:d}" if success else "hurt = hurt + %s"
    commit.many(f"UPDATE pi0rag.records SET {change} WHERE memory = %s AND id = %s AND removed IS NULL", rows)


def insert(commit: Commit, rows, refuse) -> list[int]:
  """Adds encoded records but for those at the places to refuse; returns the ids of all."""
  ids = list(range(commit.last_id + 1, commit.last_id + len(rows) + 1))
  commit.many(_INSERT, [
    (commit.memory, identity, commit.version, *itertools.chain(*codec.dated(row, commit.episodes)))
    for place, (identity, row) in enumerate(zip(ids, rows)) if place not in refuse])
  if ids:
    commit.last_id, commit.span = ids[-1], (ids[0], ids[-1])
  return ids


def evict(commit: Commit, ids) -> None:
  """Removes records whose contents stay readable at earlier versions."""
  if len(ids):
    commit.execute("UPDATE pi0rag.records SET removed = %s WHERE memory = %s AND id = ANY(%s) AND removed IS NULL",
                   commit.version, commit.memory, [int(identity) for identity in ids])


def remove(commit: Commit, ids, episode: str | None = None) -> None:
  """Removes records and erases their contents at every version, also of what was evicted before of an episode."""
  ids = [int(identity) for identity in ids]
  evict(commit, ids)
  commit.execute(f"UPDATE pi0rag.records SET {_ERASED} WHERE memory = %s AND id = ANY(%s) AND NOT erased",
                 commit.memory, ids)
  if episode is not None:
    commit.execute(f"UPDATE pi0rag.records SET {_ERASED} WHERE memory = %s AND provenance ->> 'episode' = %s "
                   "AND removed IS NOT NULL AND NOT erased", commit.memory, episode)


def use(commit: Commit, uses) -> None:
  """Adds to use counts."""
  _keep(commit, uses)
  commit.many("UPDATE pi0rag.records SET use_count = use_count + %s WHERE memory = %s AND id = %s AND removed IS NULL",
              [(number, commit.memory, identity) for identity, number in uses.items()])


def set_apart(commit: Commit, ids, reason: str) -> None:
  """Writes down why no search may return records."""
  ids = sorted({int(identity) for identity in ids})
  known = {row[0] for row in commit.execute("SELECT id FROM pi0rag.records WHERE memory = %s AND id = ANY(%s) AND "
                                            "removed IS NULL", commit.memory, ids)}
  if missing := [identity for identity in ids if identity not in known]:
    raise Pi0RagError(f"there is no record {missing[0]}: it was evicted, or never there")
  _keep(commit, ids)
  commit.execute("UPDATE pi0rag.records SET quarantine = %s WHERE memory = %s AND id = ANY(%s) AND removed IS NULL",
                 reason, commit.memory, ids)


def undo(commit: Commit, token: str) -> None:
  """Takes back the last commit with a token: it is as if it had never been, and its contents are erased."""
  last, version, first_id, last_id, ended, succeeded = commit.execute(
    "SELECT token, version, first_id, last_id, ended, succeeded FROM pi0rag.commits WHERE memory = %s AND "
    "token IS NOT NULL ORDER BY version DESC LIMIT 1", commit.memory).fetchone() or (None, 0, 1, 0, 0, 0)
  if token != last:
    raise Pi0RagError(f"'{token}' cannot be taken back, the last token is {last!r}: take back in reverse order")
  if commit.execute("SELECT 1 FROM pi0rag.commits WHERE memory = %s AND (version > %s AND kind = ANY(%s) OR "
                    "version = %s AND kind = %s) UNION SELECT 1 FROM pi0rag.memories WHERE id = %s AND oldest >= %s",
                    commit.memory, version, list(FINAL), version, FILL, commit.memory, version).fetchone():
    raise Pi0RagError(f"'{token}' cannot be taken back: the memory was changed without a token since, or what was "
                      "before it was given up")
  remove(commit, range(first_id, last_id + 1))
  back = ", ".join(_COLUMNS[3:])
  commit.execute(f"INSERT INTO pi0rag.records (memory, id, added, {back}) SELECT memory, id, %s, {back} FROM "
                 "pi0rag.records WHERE memory = %s AND removed = %s", commit.version, commit.memory, version)
  touched = [row[0] for row in commit.execute("SELECT id FROM pi0rag.history WHERE memory = %s AND version = %s",
                                              commit.memory, version)]
  _keep(commit, touched)
  commit.execute("UPDATE pi0rag.records r SET helped = h.helped, hurt = h.hurt, episode = h.episode FROM "
                 "pi0rag.history h WHERE h.memory = r.memory AND h.id = r.id AND h.version = %s AND r.memory = %s AND "
                 "r.removed IS NULL", version, commit.memory)
  commit.execute("UPDATE pi0rag.commits SET token = NULL, kind = %s WHERE memory = %s AND version = %s",
                 UNDONE, commit.memory, version)
  commit.last_id -= max(0, last_id - first_id + 1)
  commit.episodes, commit.successes = commit.episodes - ended, commit.successes - succeeded
  if min(commit.last_id, commit.episodes, commit.successes) < 0:
    raise DamagedError(f"'{token}' cannot be taken back: the memory is not what was written; see its `verify`")


def fill(commit: Commit, contents: Contents, rows) -> None:
  """Makes a memory that never had a commit what is said; `rows` are its records, encoded."""
  if commit.version != 1:
    raise Pi0RagError("the memory is in use already: choose a new place")
  columns = [name for name in _COMMIT if name != "call"]
  commit.many(f"INSERT INTO pi0rag.commits (call, {', '.join(columns)}) VALUES (gen_random_uuid(), "
              f"{', '.join(['%s'] * len(columns))})", [
                (commit.memory, version, FILL, token, digest, span.start, span.stop - 1, 0, 0, 0, 0,
                 socket.gethostname()) for version, (token, span, digest) in enumerate(contents.commits, 1)])
  commit.version = len(contents.commits) + 1
  commit.many(_INSERT, [(commit.memory, identity, commit.version, *columns, *blobs)
                        for identity, (columns, blobs) in zip(contents.records, rows)])
  commit.last_id, (commit.episodes, commit.successes) = contents.last_id, contents.clock
  commit.ended, commit.succeeded = contents.clock


def forget(connection: Connection, memory: int, kept: int) -> None:
  """Gives up all but the last versions: what was evicted before them, and how it was counted then."""
  with connection.transaction():
    connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCKS, memory))
    row = connection.execute("UPDATE pi0rag.memories SET oldest = GREATEST(oldest, version - %s) WHERE id = %s "
                             "RETURNING oldest", (kept, memory)).fetchone()
    for table, gone in (("records", "removed"), ("history", "version")):
      connection.execute(f"DELETE FROM pi0rag.{table} WHERE memory = %s AND {gone} <= %s", (memory, row[0]))


def _keep(commit: Commit, ids) -> None:
  """Keeps what is counted of records as it is before this commit."""
  names = ", ".join(COUNTED)
  if len(ids):
    commit.execute(f"INSERT INTO pi0rag.history (memory, id, version, {names}) SELECT memory, id, %s, {names} FROM "
                   "pi0rag.records WHERE memory = %s AND id = ANY(%s) AND removed IS NULL ON CONFLICT DO NOTHING",
                   commit.version, commit.memory, [int(identity) for identity in ids])
