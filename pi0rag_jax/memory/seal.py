"""The seal of a memory: 16 bytes over its header, clock, ids, counters, tokens and contents' digests.

It is the exclusive or of one hash per row, so that a commit brings it up to date by the rows that it changed alone.
"""

import hashlib
import sqlite3

# Columns whose change breaks the seal. A record's texts and arrays are under its own digest.
_COUNTERS = "id, digest, use_count, helped, hurt, episode, created, quarantine"
_SINCE_4 = ", quarantine"
TABLES = {
  "header": "name, value",
  "records": _COUNTERS,
  "batches": "token, digest, first_id, last_id, number",
  "undo": "number, changes",
  "evicted": f"number, {_COUNTERS}",
}


class Changes:
  """Follows what a connection changes and brings the seal along.

  Triggers of the connection itself, not of the file, tell it of every row, whatever statement changes it.
  """

  def __init__(self, connection: sqlite3.Connection):
    self._hash = self._total = 0
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.create_function("sealed_row", -1, self._toggle)
    for table, columns in TABLES.items():
      for event, sides in (("INSERT", ("NEW",)), ("DELETE", ("OLD",)), ("UPDATE", ("OLD", "NEW"))):
        values = [", ".join(f"{side}.{name}" for name in columns.split(", ")) for side in sides]
        calls = ", ".join(f"sealed_row('{table}', {each})" for each in values)
        name = f"seal_{table}_{event}"
        connection.execute(f"CREATE TEMP TRIGGER {name} AFTER {event} ON main.{table} BEGIN SELECT {calls}; END")

  def begin(self, connection: sqlite3.Connection) -> None:
    """To be called at the begin of a transaction."""
    self._hash, self._total = _counts(connection), connection.total_changes

  def finish(self, connection: sqlite3.Connection) -> int | None:
    """Writes the seal, before the transaction's commit; returns that commit's number, None if nothing changed."""
    if connection.total_changes == self._total:
      return None
    number = commits(connection) + 1
    connection.execute("UPDATE seal SET commits = ?", (number,))
    self._hash ^= _counts(connection)
    value = int.from_bytes(_stored(connection)[1][:16], "big") ^ self._hash
    connection.execute("UPDATE seal SET value = ?", (_bytes(value),))
    return number

  def _toggle(self, *row) -> None:
    self._hash ^= _row_hash(row)


def make(connection: sqlite3.Connection, broken: int = 0) -> None:
  """Adds the seal to a file that has all other tables, inside the caller's transaction.

  Args:
    broken: `difference` of the file's older seal, so that what was damaged before is told afterwards, too.
  """
  known = commits(connection)
  connection.execute("DROP TABLE IF EXISTS seal")
  connection.execute("CREATE TABLE seal (commits INTEGER NOT NULL, value BLOB NOT NULL)")
  connection.execute("INSERT INTO seal VALUES (?, x'')", (known,))
  connection.execute("UPDATE seal SET value = ?", (_bytes(_computed(connection) ^ broken),))


def holds(connection: sqlite3.Connection) -> bool:
  """Returns whether the seal is what the rows give; True for a file of an older version, which has none."""
  return not difference(connection)


def difference(connection: sqlite3.Connection) -> int:
  """Returns the exclusive or of the seal and what the rows give, 0 where it holds or where there is none."""
  if not exists(connection):
    return 0
  value = _stored(connection)[1]
  found = int.from_bytes(value[:16], "big") ^ _computed(connection)
  return found if len(value) == 16 else found or 1


def commits(connection: sqlite3.Connection) -> int:
  """Returns how many commits made the file what it is, 0 for one of an older version."""
  return _stored(connection)[0] if exists(connection) else 0


def exists(connection: sqlite3.Connection) -> bool:
  """Returns whether a file has a seal."""
  return connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'seal'").fetchone() is not None


def _quarantines(connection: sqlite3.Connection) -> bool:
  return any(row[1] == "quarantine" for row in connection.execute("PRAGMA table_info(records)"))


def _stored(connection: sqlite3.Connection) -> tuple[int, bytes]:
  """Returns (commits, value), zero and nothing in place of what is damaged."""
  number, value = connection.execute("SELECT commits, value FROM seal").fetchone() or (0, b"")
  return number if isinstance(number, int) else 0, value if isinstance(value, bytes) else b""


def _computed(connection: sqlite3.Connection) -> int:
  total = _counts(connection)
  for table, columns in TABLES.items():
    if columns.endswith(_SINCE_4) and not _quarantines(connection):
      columns = columns.removesuffix(_SINCE_4)
    for row in connection.execute(f"SELECT {columns} FROM {table}"):
      total ^= _row_hash((table, *row))
  return total


def _counts(connection: sqlite3.Connection) -> int:
  """Returns the hash of the last id and of the commits' number, which no trigger sees."""
  last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'records'").fetchone()
  return _row_hash(("last id", last)) ^ _row_hash(("commits", commits(connection)))


def _row_hash(row: tuple) -> int:
  return int.from_bytes(hashlib.blake2b(ascii(row).encode(), digest_size=16).digest(), "big")


def _bytes(value: int) -> bytes:
  return value.to_bytes(16, "big")
