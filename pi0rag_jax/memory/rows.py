"""Rows of records in an SQLite file, inside the caller's transaction."""

import dataclasses
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import codec, schema
from pi0rag_jax.memory.record import Header, Record
from pi0rag_jax.memory.store import Change, Commit, Counters

_INSERT = f"INSERT INTO records (id, {', '.join(codec.COLUMNS)}) VALUES (?, {', '.join('?' * len(codec.COLUMNS))})"


@dataclasses.dataclass
class Changed:
  """What a transaction changes."""

  removed: list[int] = dataclasses.field(default_factory=list)
  counted: list[int] = dataclasses.field(default_factory=list)
  added: list[tuple[int, Record]] = dataclasses.field(default_factory=list)

  def told(self, connection: sqlite3.Connection, path: Path) -> Change:
    """Returns it as the transaction leaves it, to be called before the commit."""
    query = "SELECT use_count, helped, hurt, episode FROM records WHERE id = ?"
    found = {identity: connection.execute(query, (identity,)).fetchone() for identity in self.counted}
    counters = {identity: Counters(*row) for identity, row in found.items() if row is not None}
    return Change(schema.clock(connection, path), self.removed, counters, self.added)


def select(connection: sqlite3.Connection) -> str:
  """Returns the query of records; columns that an older file lacks are read as zero or empty."""
  lacking = schema.ADDED.keys() - schema.columns(connection, "records")
  names = [f"{schema.lacking(name)} AS {name}" if name in lacking else name for name in codec.COLUMNS + codec.BLOBS]
  return f"SELECT id, {', '.join(names)} FROM records LEFT JOIN arrays USING (id)"


def count_outcome(connection: sqlite3.Connection, says: Mapping[int, float], success: bool) -> None:
  """Counts an episode and what each record had to say in it."""
  step = "UPDATE header SET value = CAST(value AS INTEGER) + 1 WHERE name = ?"
  connection.executemany(step, [(name,) for name in schema.CLOCK[: 1 + success]])
  change = "helped = helped + ?, episode = (SELECT CAST(value AS INTEGER) FROM header WHERE name = 'episodes')"
  rows = [(say, identity) for identity, say in says.items()]
  connection.executemany(f"UPDATE records SET {change if success else 'hurt = hurt + ?'} WHERE id = ?", rows)


def insert(connection: sqlite3.Connection, row: tuple, identity: int | None = None) -> int:
  """Adds an encoded record, under the next id if none is given, and returns its id."""
  columns, blobs = row
  given = connection.execute(_INSERT, (identity, *columns)).lastrowid or 0
  connection.execute("INSERT INTO arrays VALUES (?, ?, ?, ?)", (given, *blobs))
  return given


def put(connection: sqlite3.Connection, header: Header, records, commits: Iterable[Commit], clock) -> None:
  """Adds (id, Record) pairs and commits with tokens, and sets the clock."""
  for identity, record in records:
    insert(connection, codec.encode(record, header), identity)
  for number, (token, span, digest) in enumerate(commits, 1):
    first, last = (span[0], span[-1]) if span else (1, 0)
    connection.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?)", (token, digest, first, last, number))
  connection.executemany("UPDATE header SET value = ? WHERE name = ?", zip(map(str, clock), schema.CLOCK))


def take(connection: sqlite3.Connection, header: Header, change: Change, commits: Iterable[Commit]) -> None:
  """Follows another store, of which these are all the commits with tokens."""
  if change.whole:
    delete(connection, [identity for (identity,) in connection.execute("SELECT id FROM records").fetchall()])
  delete(connection, [*change.removed, *(identity for identity, _ in change.added)])
  connection.executemany("UPDATE records SET use_count = ?, helped = ?, hurt = ?, episode = ? WHERE id = ?",
                         [(*counters, identity) for identity, counters in change.counters.items()])
  connection.execute("DELETE FROM batches")
  put(connection, header, change.added, commits, change.clock)


def delete(connection: sqlite3.Connection, ids) -> None:
  """Removes records; unknown ids are ignored."""
  rows = [(int(identity),) for identity in ids]
  connection.executemany("DELETE FROM records WHERE id = ?", rows)
  connection.executemany("DELETE FROM arrays WHERE id = ?", rows)


def find_batch(connection: sqlite3.Connection, token: str | None, encoded) -> list[int] | None:
  """Returns the ids that encoded records got under a token before. Errors: Pi0RagError if it was for others."""
  if token is None:
    return None
  query = "SELECT digest, first_id, last_id FROM batches WHERE token = ?"
  row = connection.execute(query, (token,)).fetchone()
  if row is None:
    return None
  if row[0] != codec.batch_digest(columns[-1] for columns, _ in encoded):
    raise Pi0RagError(f"the token '{token}' was used for other records: use one token per batch")
  return list(range(row[1], row[2] + 1))
