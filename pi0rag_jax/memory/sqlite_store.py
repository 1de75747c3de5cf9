"""A store in an SQLite file (WAL, full synchronization), with one writer at a time."""

import contextlib
import dataclasses
import sqlite3
import threading
from collections.abc import Callable, Iterable
from typing import Any

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import codec, rows, schema, seal, undo
from pi0rag_jax.memory.record import DamagedError, Header, Record, check_records
from pi0rag_jax.memory.store import Change, Commit, Contents, Room

_PAGE = 64  # records read at a time
_CHECKPOINT_WAIT_MS = 100  # for readers, who hold up nothing but the emptying of the log


def stored_header(directory) -> Header | None:
  """Returns the header of the memory in `directory`, None if there is none. Errors: as `SqliteStore`."""
  path = schema.locate(directory)
  with schema.reported(path):
    if not path.exists():
      return None
  with schema.snapshot(path) as connection:
    return schema.read_header(connection, path)


class SqliteStore:
  """A `Store` in `directory/memory.sqlite3`, with one writer at a time and any number of readers.

  Args:
    header: what the memory must be for; None takes an existing one as it is.
    create: make the memory if there is none.
    read_only: take no lock and write nothing; a writer may come and go meanwhile.
    lock_timeout_s: how long to wait for another writer.
  Errors: Pi0RagError for a missing, foreign, truncated or damaged file (left untouched), for another header
    than the file's, and for a memory that another process writes.
  """

  remote = False

  def __init__(self, directory, header: Header | None = None, *, create=True, read_only=False, lock_timeout_s=2.0):
    self._writer: sqlite3.Connection | None = None
    self._lock = None
    self.path = schema.locate(directory)
    self.read_only = read_only
    self._mutex = threading.RLock()
    self._apply: Callable[[Change], None] | None = None
    self._moment = threading.local()  # its connection is this thread's snapshot
    if not read_only:
      self._lock = schema.acquire(self.path, header, create=create, timeout_s=lock_timeout_s)
    try:
      self.header = self._checked_header(header)
      if not read_only:
        self._writer = self._open_writer()
    except BaseException:
      self._release()
      raise

  def add(self, records, *, token=None, room: Room | None = None, outcomes=()) -> list[int]:
    """Returns the new ids after one durable transaction: `outcomes` counted, `records` added, room made for them.

    A `token` makes it safe to repeat: the second call does nothing and returns the first one's ids; `undo` takes it
    all back.

    Args:
      room: says which records to evict, and at which places incoming ones get an id but are not kept.
      outcomes: (what records had to say by id, success) of episodes that ended; unknown ids are ignored.
    Errors: Pi0RagError for records that do not fit the header, or a token seen with other records.
    """
    check_records(records, self.header)
    encoded, outcomes = [codec.encode(record, self.header) for record in records], list(outcomes)
    with self._transaction() as (connection, changed):
      seen = rows.find_batch(connection, token, encoded)
      if seen is not None:
        return seen
      evict, refuse = room() if room is not None else ((), ())
      number = connection.execute("SELECT COALESCE(MAX(number), 0) + 1 FROM batches").fetchone()[0]
      touched = sorted({identity for says, _ in outcomes for identity in says})
      if token is None:
        undo.forget(connection)
      else:
        undo.note(connection, number, touched)
      for says, success in outcomes:
        rows.count_outcome(connection, says, success)
      episodes = schema.clock(connection, self.path)[0]
      ids = []
      for record, row in zip(records, encoded):
        identity = rows.insert(connection, codec.dated(row, episodes))
        if len(ids) not in refuse:
          changed.added.append((identity, dataclasses.replace(record, episode=episodes)))
        ids.append(identity)
      if token is not None:
        undo.keep(connection, number, evict)
        first, last = (ids[0], ids[-1]) if ids else (1, 0)
        digest = codec.batch_digest(columns[-1] for columns, _ in encoded)
        connection.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?)", (token, digest, first, last, number))
      rows.delete(connection, [*evict, *(ids[place] for place in refuse)])
      changed.removed += evict
      changed.counted += touched
    return ids

  def fill(self, contents: Contents) -> None:
    """Makes a store that never had a record what `contents` says, in one durable transaction.

    Errors: Pi0RagError for one that had any, and for records that do not fit the header.
    """
    check_records(list(contents.records.values()), self.header)
    with self._transaction() as (connection, changed):
      if self.last_id() or self.commits():
        raise Pi0RagError(f"the memory in {self.path.parent} is in use already: choose a new place")
      changed.added += contents.records.items()
      rows.put(connection, self.header, changed.added, contents.commits, contents.clock)
      if contents.last_id:
        connection.execute("INSERT OR REPLACE INTO sqlite_sequence (rowid, name, seq) VALUES ((SELECT rowid FROM "
                           "sqlite_sequence WHERE name = 'records'), 'records', ?)", (contents.last_id,))

  def take(self, change: Change, commits: Iterable[Commit]) -> None:
    """Follows another store whose mirror this is: what changed there, and all of its commits with a token."""
    with self._transaction() as (connection, _):
      rows.take(connection, self.header, change, commits)

  def last_id(self) -> int:
    """Returns the largest id that any record got."""
    with self._reading() as connection, self._mutex:
      return (connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'records'").fetchone() or (0,))[0]

  def tokens(self) -> list[str]:
    """Returns the tokens of `add` that were not taken back, in the order of their commits."""
    return [commit.token for commit in self.commits()]

  def commits(self) -> list[Commit]:
    """Returns each of these tokens with what its records were."""
    with self._reading() as connection, self._mutex:
      order = [name for name in ("number", "first_id") if name in schema.columns(connection, "batches")]
      query = f"SELECT token, first_id, last_id, digest FROM batches ORDER BY {', '.join(order)}"
      found = connection.execute(query).fetchall()
    return [Commit(token, range(first, last + 1), digest) for token, first, last, digest in found]

  def undo(self, token: str) -> None:
    """Takes the last commit with a token back: rows, utilities, clock, and the next id are as they were before it.

    Errors: Pi0RagError for a token that is not the last one, or that changes without a token rest on.
    """
    with self._transaction() as (connection, changed):
      query = "SELECT token, number, first_id, last_id FROM batches ORDER BY number DESC, first_id DESC LIMIT 1"
      last, number, first_id, last_id = connection.execute(query).fetchone() or (None, 0, 0, 0)
      if token != last:
        raise Pi0RagError(f"'{token}' cannot be taken back, the last token is {last!r}: take back in reverse order")
      if not undo.possible(connection, number):
        raise Pi0RagError(f"'{token}' cannot be taken back: the memory was changed without a token since, or it is "
                          f"not one of the last {undo.KEPT}")
      if not seal.holds(connection):
        raise DamagedError(f"'{token}' cannot be taken back: {self.path} is not what was written; see its `verify`")
      rows.delete(connection, range(first_id, last_id + 1))
      returned, counted = undo.take_back(connection, number)
      changed.removed += range(first_id, last_id + 1)
      changed.added += zip(returned, self.get(returned))
      changed.counted += counted
      connection.execute("DELETE FROM batches WHERE token = ?", (token,))

  def remove(self, ids, *, episode=None) -> None:
    """Removes records for good, durably; unknown ids are ignored.

    Args:
      episode: what was evicted of it goes too; here all that was evicted does.
    """
    del episode
    ids = [int(identity) for identity in ids]
    with self._transaction() as (connection, changed):
      undo.forget(connection)
      rows.delete(connection, ids)
      changed.removed += ids

  def add_uses(self, uses) -> None:
    """Adds to the use counts of records, durably; unknown ids are ignored."""
    with self._transaction() as (connection, changed):
      changed.counted += uses
      connection.executemany("UPDATE records SET use_count = use_count + ? WHERE id = ?",
                             [(count, identity) for identity, count in uses.items()])

  def quarantine(self, ids, reason: str) -> None:
    """Writes down, durably, why no search may return these records; an empty reason releases them.

    Errors: Pi0RagError for an id that is not there; nothing changes then.
    """
    with self._transaction() as (connection, changed):
      self.get(ids)
      connection.executemany("UPDATE records SET quarantine = ? WHERE id = ?", [(reason, int(i)) for i in ids])
      changed.added += zip(map(int, ids), self.get(ids))

  def quarantined(self) -> dict[int, str]:
    """Returns why records are in quarantine, by rising id."""
    with self._reading() as connection, self._mutex:
      if "quarantine" not in schema.columns(connection, "records"):
        return {}
      return dict(connection.execute("SELECT id, quarantine FROM records WHERE quarantine <> '' ORDER BY id"))

  def clock(self) -> tuple[int, int]:
    """Returns (episodes, successes) that were counted. Errors: DamagedError if they are no numbers."""
    with self._reading() as connection, self._mutex:
      return schema.clock(connection, self.path)

  def follow(self, apply: Callable[[Change], None]) -> None:
    """Has every commit from now on told to `apply`, before the call that made it returns."""
    self._apply = apply

  def paused(self):
    """Does nothing: nobody else writes."""
    return contextlib.nullcontext()

  def following(self) -> dict[str, Any]:
    """Returns nothing: a file is always at hand."""
    return {}

  @contextlib.contextmanager
  def snapshot(self):
    """Inside the block this thread reads one moment, from the header on, whatever another process writes."""
    with self._reading() as connection:
      if not self.read_only:
        yield
        return
      self.header = schema.read_header(connection, self.path)
      self._moment.connection = connection
      try:
        yield
      finally:
        self._moment.connection = None

  def scan(self, on_damage=None):
    """Yields (id, Record) by rising id.

    A damaged record raises DamagedError; with `on_damage` it is passed there and the scan goes on.
    """
    after = -(2**63)  # damaged ids may be negative
    with self._reading() as connection:
      while True:
        with self._mutex, schema.reported(self.path):
          query = f"{rows.select(connection)} WHERE id >= ? ORDER BY id LIMIT {_PAGE}"
          page = connection.execute(query, (after,)).fetchall()
        if not page:
          return
        after = page[-1][0] + 1
        for row in page:
          try:
            decoded = codec.decode(row, self.header)
          except Pi0RagError as error:
            if on_damage is None:
              raise
            on_damage(error)
            continue
          yield decoded

  def get(self, ids) -> list[Record]:
    """Returns the records with these ids, in that order. Errors: Pi0RagError for an id that is not there."""
    records = []
    with self._reading() as connection, self._mutex:
      for identity in ids:
        row = connection.execute(f"{rows.select(connection)} WHERE id = ?", (int(identity),)).fetchone()
        if row is None:
          raise Pi0RagError(f"there is no record {identity} in {self.path}: it was evicted, or never there")
        records.append(codec.decode(row, self.header)[1])
    return records

  def of_episode(self, name) -> list[int]:
    """Returns the ids of the records whose provenance names an episode."""
    query = "SELECT id FROM records WHERE json_extract(provenance, '$.episode') = ? ORDER BY id"
    with self._reading() as connection, self._mutex:
      return [identity for (identity,) in connection.execute(query, (name,))]

  def known(self, digests) -> set[bytes]:
    """Returns which of these content digests the store has."""
    with self._reading() as connection, self._mutex:
      query = "SELECT 1 FROM records WHERE digest = ? LIMIT 1"
      return {digest for digest in digests if connection.execute(query, (digest,)).fetchone()}

  def breakdown(self, group: str) -> dict[str, int]:
    """Returns the number of records per value of one of `store.GROUPS`."""
    query = f"SELECT {schema.GROUPS[group]} AS value, COUNT(*) FROM records GROUP BY value ORDER BY value"
    with self._reading() as connection, self._mutex:
      return dict(connection.execute(query).fetchall())

  def bytes_on_disk(self) -> int:
    """Returns the bytes of the database and of its write-ahead log."""
    files = (self.path, self.path.with_name(self.path.name + "-wal"))
    return sum(file.stat().st_size for file in files if file.exists())

  def cache_bytes(self) -> int:
    """Returns the most that the writer's page cache can take; readers keep none between calls."""
    if self._writer is None:
      return 0
    with self._mutex:
      size = self._writer.execute("PRAGMA cache_size").fetchone()[0]
      return -size * 1024 if size < 0 else size * self._writer.execute("PRAGMA page_size").fetchone()[0]

  def check(self) -> None:
    """Raises DamagedError unless SQLite's thorough check finds the file sound and all arrays have a record."""
    with self._reading() as connection, self._mutex:
      schema.check_file(connection, self.path, thorough=True)
      query = "SELECT COUNT(*) FROM arrays WHERE id NOT IN (SELECT id FROM records)"
      strays = connection.execute(query).fetchone()[0]
    if strays:
      raise DamagedError(f"{self.path} is damaged: {strays} arrays without a record")

  def sealed(self) -> bool:
    """Returns whether header, clock, ids, counters and tokens are what was written. See `seal`."""
    with self._reading() as connection, self._mutex:
      return seal.holds(connection)

  def compact(self, keep_versions=None) -> None:
    """Gives unused pages back and empties the write-ahead log. Errors: Pi0RagError for versions, which a file lacks."""
    if keep_versions is not None:
      raise Pi0RagError(f"{self.path.parent} is a folder, which keeps no versions")
    with self._mutex, schema.reported(self.path):
      connection = self._require_writer()
      connection.execute("VACUUM")
      connection.execute(f"PRAGMA busy_timeout = {_CHECKPOINT_WAIT_MS}")
      connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
      connection.execute(f"PRAGMA busy_timeout = {int(schema.BUSY_TIMEOUT_S * 1000)}")

  def close(self) -> None:
    """Ends the connection and lets the next writer in; a second call does nothing."""
    with self._mutex:
      self._release()

  def _checked_header(self, wanted: Header | None) -> Header:
    with schema.snapshot(self.path) as connection:
      schema.check_file(connection, self.path)
      found = schema.read_header(connection, self.path)
    if wanted is not None:
      found.require(wanted, str(self.path.parent))
    return found

  def _open_writer(self) -> sqlite3.Connection:
    with schema.reported(self.path):
      connection = schema.connect(self.path, "mode=rw")
      try:
        for pragma in ("journal_mode = WAL", "synchronous = FULL"):
          connection.execute(f"PRAGMA {pragma}")
        schema.upgrade(connection)
        self._changes = seal.Changes(connection)
        if self._lock is not None:
          self._lock.note(seal.commits(connection))
      except BaseException:
        connection.close()
        raise
    return connection

  def _require_writer(self) -> sqlite3.Connection:
    if self._writer is None:
      state = "is open for reading only" if self.read_only else "is closed"
      raise Pi0RagError(f"{self.path.parent} {state}: nothing can be written")
    return self._writer

  @contextlib.contextmanager
  def _transaction(self):
    """Yields the connection inside one transaction, all of it durable at the end or none there, and what to tell of it.
    """
    changed = rows.Changed()
    with self._mutex, schema.reported(self.path):
      connection = self._require_writer()
      connection.execute("BEGIN IMMEDIATE")
      try:
        self._changes.begin(connection)
        yield connection, changed
        number = self._changes.finish(connection)
        told = changed.told(connection, self.path)
        connection.execute("COMMIT")
      except BaseException:
        if connection.in_transaction:
          connection.execute("ROLLBACK")
        raise
      if number is not None and self._lock is not None:
        with contextlib.suppress(OSError):  # a disk that is full; only the check of the journal is weaker
          self._lock.note(number)
    if self._apply is not None and number is not None:
      self._apply(told)

  @contextlib.contextmanager
  def _reading(self):
    if getattr(self._moment, "connection", None) is not None:
      with schema.reported(self.path):
        yield self._moment.connection
    elif self.read_only:
      with schema.snapshot(self.path) as connection:
        yield connection
    else:
      with schema.reported(self.path):
        yield self._require_writer()

  def _release(self) -> None:
    writer, held, self._writer, self._lock = self._writer, self._lock, None, None
    try:
      if writer is not None:
        writer.close()
    finally:
      if held is not None:
        held.release()
