"""The SQLite file of a memory: its tables, how it is made, how it is checked before anything writes to it."""

import contextlib
import dataclasses
import os
import sqlite3
from pathlib import Path

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import lock
from pi0rag_jax.memory.record import DamagedError, Header

NAME = "memory.sqlite3"
APPLICATION_ID = 0x70693052  # "pi0R"
# 2 added columns; a version 1 is read as it is, and gets them when it is next written to.
VERSION = 2
READABLE = (1, 2)
BUSY_TIMEOUT_S = 5.0
# Fields of the header that came with version 3, as a file without them is read.
LATER = {"start": "zero", "actions": ""}
# Where SQLite's file header has them (https://www.sqlite.org/fileformat.html, 1.3).
_MAGIC, _HEAD_BYTES, _VERSION_AT, _APPLICATION_ID_AT = b"SQLite format 3\0", 100, 60, 68
# Blobs have their own table: scans of the small columns and updates of use counts then touch few pages.
ADDED = {"helped": "REAL NOT NULL DEFAULT 0", "hurt": "REAL NOT NULL DEFAULT 0",
         "episode": "INTEGER NOT NULL DEFAULT 0"}
_TABLES = f"""
CREATE TABLE header (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE records (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  kind TEXT NOT NULL, outcome TEXT NOT NULL, failure_kind TEXT NOT NULL,
  task TEXT NOT NULL, prompt TEXT NOT NULL, provenance TEXT NOT NULL, use_count INTEGER NOT NULL,
  created REAL NOT NULL, digest BLOB NOT NULL,
  {", ".join(f"{name} {kind}" for name, kind in ADDED.items())});
CREATE INDEX records_digest ON records (digest);
CREATE TABLE arrays (id INTEGER PRIMARY KEY, key BLOB NOT NULL, base BLOB NOT NULL, corrected BLOB NOT NULL);
CREATE TABLE batches (
  token TEXT PRIMARY KEY, digest BLOB NOT NULL,
  first_id INTEGER NOT NULL, last_id INTEGER NOT NULL) WITHOUT ROWID;
"""


def create(path: Path, header: Header) -> None:
  """Makes an empty memory file under another name and renames it: a kill leaves a whole file or none.

  The caller holds the directory's lock. Errors: Pi0RagError if a journal of a file that is gone lies there.
  """
  orphan = path.with_name(path.name + "-wal")
  if orphan.exists():
    raise Pi0RagError(f"{orphan} is there without {path.name}: put the file back, or move the journal away")
  new = path.with_name(path.name + ".new")
  for suffix in ("", "-wal", "-shm", "-journal"):
    new.with_name(new.name + suffix).unlink(missing_ok=True)
  with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as connection:
    connection.execute("PRAGMA synchronous = FULL")
    marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};"
    connection.executescript(marks + _TABLES)
    fields = dataclasses.asdict(header).items()
    connection.executemany("INSERT INTO header VALUES (?, ?)", [(name, str(value)) for name, value in fields])
    connection.execute("PRAGMA journal_mode = WAL")
  sync(new)
  new.rename(path)
  sync(path.parent)


@contextlib.contextmanager
def snapshot(path: Path, *, locked: bool = False):
  """Yields a connection that reads one consistent state and writes nothing to the file.

  Without a writer and a journal the file is opened as immutable, which works on read-only media too.
  `locked`: the caller holds the writer's lock, so that nobody else writes.
  Errors: Pi0RagError for a file that is missing, foreign, or cannot be read.
  """
  if not path.is_file():
    raise Pi0RagError(f"no memory in {path.parent}: {path.name} is missing")
  with reported(path), contextlib.nullcontext(True) if locked else lock.no_writer(path.parent) as alone:
    if alone:
      # Not through SQLite: a kill during a checkpoint leaves a file that is whole only with its journal.
      # Not while a writer lives: closing the file would drop the locks of a writer in this process.
      with open(path, "rb") as file:
        _check_identity(path, file.read(_HEAD_BYTES))
    wal = path.with_name(path.name + "-wal")
    immutable = alone and not (wal.exists() and wal.stat().st_size)
    with contextlib.closing(connect(path, "mode=ro&immutable=1" if immutable else "mode=ro")) as connection:
      yield connection


def read_header(connection: sqlite3.Connection, path: Path) -> Header:
  """Returns the header in the file, with LATER's values where it is older. Errors: Pi0RagError if it is not complete."""
  values = LATER | dict(connection.execute("SELECT name, value FROM header"))
  try:
    return Header(**{f.name: f.type(values[f.name]) for f in dataclasses.fields(Header)})  # type: ignore[operator]
  except (KeyError, ValueError, Pi0RagError) as error:
    raise _damaged(path, f"no usable header: {error!r}") from error


def upgrade(connection: sqlite3.Connection) -> None:
  """Brings a file of version 1 to the present one; the caller is its only writer."""
  if version(connection) == VERSION:
    return
  steps = [f"ALTER TABLE records ADD COLUMN {name} {kind}" for name, kind in ADDED.items()]
  connection.executescript(f"BEGIN IMMEDIATE; {'; '.join(steps)}; PRAGMA user_version = {VERSION}; COMMIT")


def version(connection: sqlite3.Connection) -> int:
  """Returns the format version of a file."""
  return connection.execute("PRAGMA user_version").fetchone()[0]


def check_file(connection: sqlite3.Connection, path: Path, *, thorough: bool = False) -> None:
  """Raises Pi0RagError if pages of the file are missing or damaged; `thorough` compares its indices too."""
  check = "integrity_check" if thorough else "quick_check"
  found = [row[0] for row in connection.execute(f"PRAGMA {check}(5)")]
  if found != ["ok"]:
    raise _damaged(path, "; ".join(line.replace("\n", " ") for line in found))


@contextlib.contextmanager
def reported(path: Path):
  """Turns SQLite's errors inside the block into Pi0RagErrors that say what to do."""
  try:
    yield
  except sqlite3.OperationalError as error:
    if "locked" in str(error) or "busy" in str(error):
      raise Pi0RagError(f"{path} is in use by another process since {BUSY_TIMEOUT_S:g} s: try again") from error
    raise Pi0RagError(f"{path} cannot be read or written: {error}") from error
  except sqlite3.DatabaseError as error:
    raise _damaged(path, str(error)) from error
  except OSError as error:
    raise Pi0RagError(f"{path} cannot be read or written: {error}") from error


def connect(path: Path, parameters: str) -> sqlite3.Connection:
  """Returns a connection in autocommit mode that any thread may use, one at a time."""
  uri = f"{path.resolve().as_uri()}?{parameters}"
  connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
  # A damaged text must reach the digest's check, which names the record, instead of failing to decode.
  connection.text_factory = lambda text: text.decode(errors="replace")
  return connection


def sync(path: Path) -> None:
  """Makes a file's content or a directory's entries durable."""
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)


def _check_identity(path: Path, head: bytes) -> None:
  """Raises Pi0RagError unless a file that begins with `head` is a memory of a version that this code knows."""
  if len(head) < _HEAD_BYTES or not head.startswith(_MAGIC):
    raise _foreign(path, "no SQLite file")
  found, application_id = (int.from_bytes(head[at : at + 4], "big") for at in (_VERSION_AT, _APPLICATION_ID_AT))
  if application_id != APPLICATION_ID:
    raise _foreign(path, f"application id {application_id:#x}, expected {APPLICATION_ID:#x}")
  if found not in READABLE:
    raise Pi0RagError(f"{path} has format version {found}, this code reads {', '.join(map(str, READABLE))}: use what "
                      "wrote it")


def _foreign(path: Path, details: str) -> Pi0RagError:
  return Pi0RagError(f"{path} is not a memory ({details}): it was left as it is; choose another directory")


def _damaged(path: Path, details: str) -> DamagedError:
  return DamagedError(f"{path} is damaged ({details}): it was left as it is; restore it from a backup")
