"""The SQLite file of a memory: its tables, how it is made, how it is checked before anything writes to it."""

import contextlib
import dataclasses
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from pi0rag_jax import files, lfs
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import lock, seal
from pi0rag_jax.memory.record import DamagedError, Header

NAME = "memory.sqlite3"
APPLICATION_ID = 0x70693052  # "pi0R"
# 2 added columns, 3 the seal, what an undo needs, and LATER, 4 the quarantine. Older files are read as they are, and
# brought to the present version when they are next opened for writing.
VERSION = 4
READABLE = (1, 2, 3, 4)
BUSY_TIMEOUT_S = 5.0
_SHOWN = 300  # characters of what SQLite or a parser says
ADDED = {"helped": "REAL NOT NULL DEFAULT 0", "hurt": "REAL NOT NULL DEFAULT 0",
         "episode": "INTEGER NOT NULL DEFAULT 0", "quarantine": "TEXT NOT NULL DEFAULT ''"}
# Rows of the header that came with version 3, with what a file without them is read as.
LATER = {"start": "zero", "actions": ""}
# Rows beside the header's own: how many episodes ended with the memory in use, and how many of them well.
CLOCK = ("episodes", "successes")
# What `breakdown` groups by, in SQL.
GROUPS = {"kind": "kind", "outcome": "outcome", "failure_kind": "failure_kind", "task": "task",
          "source": "json_extract(provenance, '$.source')"}
_COLUMNS = f"""
  kind TEXT NOT NULL, outcome TEXT NOT NULL, failure_kind TEXT NOT NULL,
  task TEXT NOT NULL, prompt TEXT NOT NULL, provenance TEXT NOT NULL, use_count INTEGER NOT NULL,
  created REAL NOT NULL, digest BLOB NOT NULL,
  {", ".join(f"{name} {kind}" for name, kind in ADDED.items())}"""
_BLOBS = "key BLOB NOT NULL, base BLOB NOT NULL, corrected BLOB NOT NULL"
# Blobs have their own table: scans of the small columns and updates of use counts then touch few pages.
_TABLES = f"""
CREATE TABLE header (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE records (id INTEGER PRIMARY KEY AUTOINCREMENT, {_COLUMNS});
CREATE INDEX records_digest ON records (digest);
CREATE TABLE arrays (id INTEGER PRIMARY KEY, {_BLOBS});
CREATE TABLE batches (
  token TEXT PRIMARY KEY, digest BLOB NOT NULL,
  first_id INTEGER NOT NULL, last_id INTEGER NOT NULL) WITHOUT ROWID;
"""
_NUMBERED = {"number": "INTEGER NOT NULL DEFAULT 0"}
_SINCE_3 = (
  "CREATE TABLE IF NOT EXISTS undo (number INTEGER PRIMARY KEY, changes TEXT NOT NULL)",
  f"CREATE TABLE IF NOT EXISTS evicted (number INTEGER NOT NULL, id INTEGER PRIMARY KEY, {_COLUMNS}, {_BLOBS})",
)


def locate(directory) -> Path:
  """Returns the file of the memory in `directory`, with `~` expanded and links followed.

  All names of one memory thus share the lock and the journal, which lie beside the file itself.
  """
  try:
    return (Path(directory).expanduser() / NAME).resolve()
  except (OSError, RuntimeError, ValueError) as error:
    raise Pi0RagError(f"{directory} cannot be used for a memory: {error}") from None


def make(path: Path, header: Header) -> None:
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
    connection.executescript(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 2; {_TABLES}")
    fields = dataclasses.asdict(header).items()
    connection.executemany("INSERT INTO header VALUES (?, ?)", [(name, str(value)) for name, value in fields])
    upgrade(connection)
    connection.execute("PRAGMA journal_mode = WAL")
  files.sync(new)
  new.rename(path)
  files.sync(path.parent)


def acquire(path: Path, header: Header | None, *, create: bool, timeout_s: float) -> lock.WriterLock:
  """Returns the writer's lock, after making an empty memory where there is none and one is wanted."""
  with reported(path):
    if not path.exists() and (header is None or not create):
      raise Pi0RagError(f"no memory in {path.parent}: {path.name} is missing")
  try:
    _make_durable_directory(path.parent)
    held = lock.WriterLock(path, timeout_s)
  except OSError as error:
    raise Pi0RagError(f"{path.parent} cannot be used for a memory: {error}") from error
  try:
    with reported(path):
      if not path.exists() and header is not None:
        held.note(0)
        make(path, header)
      elif path.is_file() and path.stat().st_nlink > 1:
        raise Pi0RagError(f"{path} has another name, a hard link, whose writers cannot be seen: copy it first")
  except BaseException:
    held.release()
    raise
  return held


@contextlib.contextmanager
def snapshot(path: Path) -> Iterator[sqlite3.Connection]:
  """Yields a connection that sees the memory as it is at this moment, whatever is written meanwhile.

  It takes no lock that a writer waits for and changes nothing.
  Errors: Pi0RagError for a file that is missing, foreign, or cannot be read; DamagedError if commits are missing.
  """
  with reported(path):
    if not path.is_file():
      raise Pi0RagError(f"no memory in {path.parent}: {path.name} is missing")
    _check_identity(path)
    known = lock.commits(path)  # read before the snapshot, which therefore has them all
    connection, before = _reader(path)
    with contextlib.closing(connection):
      if seal.commits(connection) < known:
        raise DamagedError(
          f"{path} lacks {known - seal.commits(connection)} of {known} commits: its journal was cut or taken away, "
          "or an older copy put in its place; bring the journal back, or remove "
          f"{lock.path_of(path).name} beside it to go on with what is left"
        )
      yield connection
    if before is not None and before != _stamp(path):
      raise Pi0RagError(f"{path} was written while it was read, where a reader cannot tell the writer: try again")


def read_header(connection: sqlite3.Connection, path: Path) -> Header:
  """Returns the header in the file. Errors: DamagedError if it is not complete."""
  values = LATER | dict(connection.execute("SELECT name, value FROM header"))
  try:
    return Header(**{f.name: f.type(values[f.name]) for f in dataclasses.fields(Header)})  # type: ignore[operator]
  except (KeyError, ValueError, Pi0RagError) as error:
    raise _damaged(path, f"no usable header: {one_line(repr(error))}") from error


def clock(connection: sqlite3.Connection, path: Path) -> tuple[int, int]:
  """Returns (episodes, successes) that were counted. Errors: DamagedError if they are no numbers."""
  values = dict(connection.execute("SELECT name, value FROM header"))
  try:
    episodes, successes = (int(values.get(name, 0)) for name in CLOCK)
  except ValueError:
    raise DamagedError(f"{path} is damaged: its count of episodes is no number") from None
  return episodes, successes


def upgrade(connection: sqlite3.Connection) -> None:
  """Brings a file of an older version to the present one, at once or not at all; the caller is its only writer."""
  if version(connection) == VERSION:
    return
  connection.execute("BEGIN IMMEDIATE")
  broken = seal.difference(connection) if version(connection) == 3 else 0
  for statement in _SINCE_3:
    connection.execute(statement)
  for table, added in {"records": ADDED, "evicted": ADDED, "batches": _NUMBERED}.items():
    for name, kind in added.items():  # in this order in every file
      if name not in columns(connection, table):
        connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")
  rows = LATER | dict.fromkeys(CLOCK, "0")
  connection.executemany("INSERT OR IGNORE INTO header VALUES (?, ?)", rows.items())
  seal.make(connection, broken)
  connection.execute(f"PRAGMA user_version = {VERSION}")
  connection.execute("COMMIT")


def columns(connection: sqlite3.Connection, table: str) -> set[str]:
  """Returns the names of a table's columns, whatever the file's version says."""
  return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}


def lacking(name: str) -> str:
  """Returns what a column of ADDED is in a file without it, in SQL."""
  return ADDED[name].rpartition(" ")[2]


def version(connection: sqlite3.Connection) -> int:
  """Returns the format version of a file."""
  return connection.execute("PRAGMA user_version").fetchone()[0]


def check_file(connection: sqlite3.Connection, path: Path, *, thorough: bool = False) -> None:
  """Raises Pi0RagError if pages of the file are missing or damaged; `thorough` compares its indices too."""
  check = "integrity_check" if thorough else "quick_check"
  found = [row[0] for row in connection.execute(f"PRAGMA {check}(5)")]
  if found != ["ok"]:
    raise _damaged(path, one_line("; ".join(map(str, found))))


@contextlib.contextmanager
def reported(path: Path):
  """Turns SQLite's errors inside the block into Pi0RagErrors that say what to do."""
  try:
    yield
  except (sqlite3.OperationalError, OSError) as error:
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
      raise Pi0RagError(f"{path} is in use by another process since {BUSY_TIMEOUT_S:g} s: try again") from error
    raise Pi0RagError(f"{path} cannot be read or written: {one_line(error)}") from error
  except (sqlite3.DatabaseError, UnicodeDecodeError, MemoryError) as error:  # the latter from messages and lengths
    raise _damaged(path, one_line(error)) from error


def one_line(error: object) -> str:
  """Returns an error's text, which may quote a damaged file, as the start of one line."""
  return " ".join(str(error).split())[:_SHOWN] or type(error).__name__


def connect(path: Path, parameters: str) -> sqlite3.Connection:
  """Returns a connection in autocommit mode that any thread may use, one at a time."""
  uri = f"{path.resolve().as_uri()}?{parameters}"
  connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
  # A damaged text must reach the digest's check, which names the record, instead of failing to decode.
  connection.text_factory = lambda text: text.decode(errors="replace")
  return connection


def _reader(path: Path) -> tuple[sqlite3.Connection, tuple | None]:
  """Returns (a connection inside a transaction, the file's stamp where SQLite could not guard it from writers)."""
  if _journal_bytes(path):
    # Perhaps a killed writer's: opened for reading alone, which leaves it as it is.
    return _begun(path, "mode=ro"), None
  try:
    # Not for reading alone, which would leave behind what SQLite makes beside the file.
    return _begun(path, "mode=rw"), None
  except sqlite3.OperationalError as error:
    if "locked" in str(error) or _journal_bytes(path):
      raise
    # Nothing can be made beside the file: read-only media, somebody else's directory, a full disk.
    before = _stamp(path)
    return _begun(path, "mode=ro&immutable=1"), before


def _begun(path: Path, parameters: str) -> sqlite3.Connection:
  connection = connect(path, parameters)
  try:
    connection.execute("PRAGMA query_only = 1")
    connection.execute("BEGIN")
    connection.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()
  except BaseException:
    connection.close()
    raise
  return connection


def _journal_bytes(path: Path) -> int:
  try:
    return path.with_name(path.name + "-wal").stat().st_size
  except FileNotFoundError:
    return 0


def _stamp(path: Path) -> tuple:
  stat = path.stat()
  return stat.st_mtime_ns, stat.st_size, _journal_bytes(path)


def _check_identity(path: Path) -> None:
  """Raises Pi0RagError unless the file is a memory of a version that this code knows.

  Through SQLite: closing a file of our own would drop the locks that this process has on it. Immutable, so that a
  foreign file is left alone; `writable_schema`, since a kill during a checkpoint leaves a file that is whole only with
  its journal.
  """
  try:
    with contextlib.closing(connect(path, "mode=ro&immutable=1")) as connection:
      connection.execute("PRAGMA writable_schema = 1")
      application_id = connection.execute("PRAGMA application_id").fetchone()[0]
      found = version(connection)
  except sqlite3.OperationalError:
    raise
  except sqlite3.DatabaseError as error:
    raise _foreign(path, lfs.reason(path, one_line(error))) from None
  if application_id != APPLICATION_ID:
    raise _foreign(path, f"application id {application_id & 0xFFFFFFFF:#x}, expected {APPLICATION_ID:#x}")
  if found not in READABLE:
    raise Pi0RagError(f"{path} has format version {found}, this code reads {', '.join(map(str, READABLE))}: use what "
                      "wrote it")


def _foreign(path: Path, details: str) -> Pi0RagError:
  return Pi0RagError(f"{path} is not a memory ({details}): it was left as it is; choose another directory")


def _damaged(path: Path, details: str) -> DamagedError:
  return DamagedError(f"{path} is damaged ({details}): it was left as it is; restore it from a backup")


def _make_durable_directory(directory: Path) -> None:
  missing = [folder for folder in (directory, *directory.parents) if not folder.exists()]
  directory.mkdir(parents=True, exist_ok=True)
  for folder in missing:
    files.sync(folder.parent)
