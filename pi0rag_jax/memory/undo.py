"""Taking commits back: each one with a token leaves what it changed, until a change without a token rests on it.

Use counts are counted at any time and stay out of this: what was used stays used.
"""

import json
import sqlite3

from pi0rag_jax.memory import codec

# Commits that can be taken back; what earlier ones evicted is given up.
KEPT = 64
_SMALL, _BLOBS = ", ".join(("id", *codec.COLUMNS)), ", ".join(codec.BLOBS)


def note(connection: sqlite3.Connection, number: int, touched) -> None:
  """Keeps clock, last id, and the utility of the records `touched` as they are before commit `number`."""
  utilities = []
  for identity in touched:
    utilities += connection.execute("SELECT helped, hurt, episode, id FROM records WHERE id = ?", (identity,))
  changes = {
    "clock": connection.execute("SELECT value, name FROM header WHERE name IN ('episodes', 'successes')").fetchall(),
    "last_id": connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'records'").fetchone(),
    "utilities": utilities,
  }
  connection.execute("INSERT INTO undo VALUES (?, ?)", (number, json.dumps(changes)))
  for table in ("undo", "evicted"):
    connection.execute(f"DELETE FROM {table} WHERE number <= ?", (number - KEPT,))


def keep(connection: sqlite3.Connection, number: int, evicted) -> None:
  """Keeps records that commit `number` is about to evict."""
  names = f"{_SMALL}, {_BLOBS}"
  query = f"INSERT INTO evicted (number, {names}) SELECT ?, {names} FROM records JOIN arrays USING (id)"
  connection.executemany(f"{query} WHERE id = ?", [(number, identity) for identity in evicted])


def forget(connection: sqlite3.Connection) -> None:
  """Gives up taking back anything that was done so far."""
  for table in ("undo", "evicted"):
    connection.execute(f"DELETE FROM {table}")


def possible(connection: sqlite3.Connection, number: int) -> bool:
  """Returns whether commit `number` can be taken back."""
  return connection.execute("SELECT 1 FROM undo WHERE number = ?", (number,)).fetchone() is not None


def take_back(connection: sqlite3.Connection, number: int) -> tuple[list[int], list[int]]:
  """Undoes commit `number`, the last one, but for the records that it added: those are removed before.

  Returns (ids of the records that return, ids of those whose utilities are again what they were).
  """
  returned = [row[0] for row in connection.execute("SELECT id FROM evicted WHERE number = ?", (number,))]
  changes = json.loads(connection.execute("SELECT changes FROM undo WHERE number = ?", (number,)).fetchone()[0])
  for table, columns in (("records", _SMALL), ("arrays", f"id, {_BLOBS}")):
    connection.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM evicted WHERE number = ?", (number,))
  connection.executemany("UPDATE records SET helped = ?, hurt = ?, episode = ? WHERE id = ?", changes["utilities"])
  connection.executemany("UPDATE header SET value = ? WHERE name = ?", changes["clock"])
  if changes["last_id"] is None:
    connection.execute("DELETE FROM sqlite_sequence WHERE name = 'records'")
  else:
    connection.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'records'", changes["last_id"])
  for table in ("undo", "evicted"):
    connection.execute(f"DELETE FROM {table} WHERE number = ?", (number,))
  return returned, [identity for *_, identity in changes["utilities"]]
