"""A store in tables of a PostgreSQL server, with any number of writers and readers at once."""

import contextlib
import dataclasses
import json
import logging
import threading
import uuid
from collections.abc import Callable
from typing import Any

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import codec
from pi0rag_jax.memory.address import ServerAddress
from pi0rag_jax.memory.postgres import connection as connections
from pi0rag_jax.memory.postgres import reading, schema, writing
from pi0rag_jax.memory.postgres.connection import Connection, psycopg
from pi0rag_jax.memory.postgres.follower import Follower
from pi0rag_jax.memory.record import DamagedError, Header, check_records
from pi0rag_jax.memory.store import Change, Commit, Contents, UnreachableError

_log = logging.getLogger(__name__)
_PAGE = 256  # records read at a time
# How long a call goes on trying while the server is away; people who teach wait for it.
PATIENCE_S = 8.0


def stored_header(address: ServerAddress) -> Header | None:
  """Returns the header of the memory at an address, None if there is none. Errors: as `PostgresStore`."""
  with connections.connect(address) as connection, connections.reported(address):
    found = _find(connection, address)
    return None if found is None else found[1]


class PostgresStore:
  """A `Store` of the name in `address`, which may be of a version: then it is read as it was, for good.

  Args:
    header: what the memory must be for; None takes an existing one as it is.
    create: make the memory, and the tables, if there are none.
    read_only: write nothing, not even the tables.
  Errors: Pi0RagError for a server that is away or refuses, tables of another version, a memory that is missing or of
    another header, or a version that it does not have or that cannot be read any more.
  """

  remote = True

  def __init__(self, address: ServerAddress, header: Header | None = None, *, create=True, read_only=False):
    if address.version is not None and not read_only:
      raise Pi0RagError(f"{address}: what was is only read: open it with read_only=True, or without a version")
    self.address, self.read_only = address, read_only
    self._version, self._told = address.version, 0
    self._mutex, self._telling = threading.RLock(), threading.RLock()
    self._moment = threading.local()  # its connection is this thread's snapshot
    self._connection: Connection = connections.connect(address)  # None where it was lost
    self._apply: Callable[[Change], None] | None = None
    self._follower: Follower | None = None
    self._pauses, self._closed = 0, False
    try:
      with connections.reported(address):
        self._memory, self.header = self._open(self._connection, header, create)
    except BaseException:
      self._connection.close()
      raise

  def _open(self, connection: Connection, header: Header | None, create: bool) -> tuple[int, Header]:
    if not self.read_only:
      _check_durability(connection, self.address)
      if (header is not None and create) or schema.found(connection, self.address):
        schema.prepare(connection, self.address)
    found = _find(connection, self.address)
    if found is None and header is not None and create and not self.read_only:
      connection.execute("INSERT INTO pi0rag.memories (name, header) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                         (self.address.memory, json.dumps(dataclasses.asdict(header))))
      found = _find(connection, self.address)
    if found is None:
      raise Pi0RagError(f"no memory in {self.address}: the server has none of this name")
    if header is not None:
      found[1].require(header, str(self.address))
    if self._version is not None:
      self._check_version(connection, found[0])
    return found

  def _check_version(self, connection, memory: int) -> None:
    wanted, (oldest, newest) = self._version or 0, reading.versions(connection, memory)
    if not oldest <= wanted <= newest:
      raise Pi0RagError(f"{self.address}: there is no version {wanted}, allowed: {oldest} to {newest}")
    query = f"SELECT COUNT(*) FROM {reading.present(self._version)} WHERE erased"
    erased = connection.execute(query, {"memory": memory, "version": self._version}).fetchone()[0]
    if erased:
      raise Pi0RagError(f"{self.address}: version {self._version} cannot be read any more, {erased} of its records "
                        "were removed for good since: take a later one")

  def add(self, records, *, token=None, room=None, outcomes=()) -> list[int]:
    """Returns as `SqliteStore.add`; it is done once, also where the connection breaks in the middle of it."""
    check_records(records, self.header)
    rows, outcomes = [codec.encode(record, self.header) for record in records], list(outcomes)
    if not rows and not outcomes and token is None:
      return []

    def change(commit: writing.Commit) -> None:
      evict, refuse = room() if room is not None else ((), ())
      writing.count(commit, outcomes)
      writing.insert(commit, rows, refuse)
      writing.evict(commit, evict)

    return self._commit(writing.ADD, change, token, codec.batch_digest(columns[-1] for columns, _ in rows))

  def fill(self, contents: Contents) -> None:
    """Makes a store that never had a record what `contents` says. Errors: as `SqliteStore.fill`."""
    check_records(list(contents.records.values()), self.header)
    rows = [codec.encode(record, self.header) for record in contents.records.values()]
    self._commit(writing.FILL, lambda commit: writing.fill(commit, contents, rows))

  def undo(self, token: str) -> None:
    """Takes the last commit with a token back, as `SqliteStore.undo`, however long ago it was."""
    self._commit(writing.UNDO, lambda commit: writing.undo(commit, token))

  def remove(self, ids, *, episode=None) -> None:
    """Removes records for good: no version has their contents any more; unknown ids are ignored.

    Args:
      episode: what was evicted of it goes too.
    """
    ids = [int(identity) for identity in ids]
    self._commit(writing.REMOVE, lambda commit: writing.remove(commit, ids, episode))

  def add_uses(self, uses) -> None:
    """Adds to the use counts of records, durably; unknown ids are ignored."""
    self._commit(writing.USES, lambda commit: writing.use(commit, uses))

  def quarantine(self, ids, reason: str) -> None:
    """Writes down why no search may return these records. Errors: as `SqliteStore.quarantine`."""
    self._commit(writing.QUARANTINE, lambda commit: writing.set_apart(commit, ids, reason))

  def quarantined(self) -> dict[int, str]:
    """Returns why records are in quarantine, by rising id."""
    return dict(self._rows(f"SELECT id, quarantine FROM {reading.present(self._version)} WHERE quarantine <> '' "
                           "ORDER BY id"))

  def follow(self, apply: Callable[[Change], None]) -> None:
    """Has every commit from `snapshot` on, whoever makes it, told to `apply`; own ones before their call returns."""
    self._apply = apply
    if self._version is None:
      self._follower = Follower(self.address, writing.channel(self._memory), self._catch_up)

  @contextlib.contextmanager
  def paused(self):
    """Inside the block nothing is told."""
    with self._telling:
      self._pauses += 1
    try:
      yield
    finally:
      with self._telling:
        self._pauses -= 1
      if self._follower is not None:
        self._follower.wake()

  def following(self) -> dict[str, Any]:
    """Returns the version that was told last and how the way to the server is."""
    if self._version is not None:
      return {"version": self._version, "frozen": True}
    return {"version": self._told} | ({} if self._follower is None else self._follower.state())

  @contextlib.contextmanager
  def snapshot(self):
    """Inside the block this thread reads one moment, and what follows is told neither more nor less than that."""
    with self._telling, connections.connect(self.address) as connection, connections.reported(self.address):
      connection.execute(reading.ONE_MOMENT)
      # Who only reads holds nobody up, and may take its time: a large index is made in between.
      connection.execute("SET LOCAL idle_in_transaction_session_timeout = '10min'")
      if self._apply is None:
        self._told = reading.versions(connection, self._memory)[1]
      else:
        self._tell(connection)
      self._moment.connection = connection
      try:
        yield
      finally:
        self._moment.connection = None

  def tokens(self) -> list[str]:
    """Returns the tokens of `add` that were not taken back, in the order of their commits."""
    return [commit.token for commit in self.commits()]

  def commits(self) -> list[Commit]:
    """Returns each of these tokens with what its records were."""
    rows = self._rows("SELECT token, first_id, last_id, digest FROM pi0rag.commits WHERE memory = %(memory)s AND "
                      "token IS NOT NULL AND version <= COALESCE(%(version)s, version) ORDER BY version")
    return [Commit(token, range(first, last + 1), digest) for token, first, last, digest in rows]

  def clock(self) -> tuple[int, int]:
    """Returns (episodes, successes) that were counted."""
    return self._read(lambda connection: reading.clock(connection, self._memory, self._version))

  def last_id(self) -> int:
    """Returns the largest id that any record got."""
    if self._version is not None:
      rows = self._rows("SELECT COALESCE(MAX(last_id), 0) FROM pi0rag.commits WHERE memory = %(memory)s AND "
                        "version <= %(version)s AND kind <> 'undone'")
    else:
      rows = self._rows("SELECT last_id FROM pi0rag.memories WHERE id = %(memory)s")
    return rows[0][0]

  def scan(self, on_damage=None):
    """Yields (id, Record) by rising id.

    A damaged record raises DamagedError; with `on_damage` it is passed there and the scan goes on.
    """
    after = 0
    while rows := self._rows(f"SELECT {reading.RECORD} FROM {reading.present(self._version)} WHERE id > %(after)s "
                             f"ORDER BY id LIMIT {_PAGE}", after=after):
      after = rows[-1][0]
      for row in rows:
        try:
          decoded = codec.decode(row, self.header)
        except Pi0RagError as error:
          if on_damage is None:
            raise
          on_damage(error)
          continue
        yield decoded

  def get(self, ids) -> list:
    """Returns the records with these ids, in that order. Errors: Pi0RagError for an id that is not there."""
    ids = [int(identity) for identity in ids]
    rows = self._rows(f"SELECT {reading.RECORD} FROM {reading.present(self._version)} WHERE id = ANY(%(ids)s)", ids=ids)
    found = dict(codec.decode(row, self.header) for row in rows)
    for identity in ids:
      if identity not in found:
        raise Pi0RagError(f"there is no record {identity} in {self.address}: it was evicted, or never there")
    return [found[identity] for identity in ids]

  def of_episode(self, name) -> list[int]:
    """Returns the ids of the records whose provenance names an episode."""
    rows = self._rows(f"SELECT id FROM {reading.present(self._version)} WHERE provenance ->> 'episode' = %(name)s AND "
                      "json_typeof(provenance -> 'episode') = 'string' ORDER BY id", name=name)
    return [identity for (identity,) in rows]

  def known(self, digests) -> set[bytes]:
    """Returns which of these content digests the store has."""
    rows = self._rows(f"SELECT DISTINCT digest FROM {reading.present(self._version)} WHERE digest = ANY(%(digests)s)",
                      digests=list(digests))
    return {digest for (digest,) in rows}

  def breakdown(self, group: str) -> dict[str, int]:
    """Returns the number of records per value of one of `store.GROUPS`."""
    return dict(sorted(self._rows(f"SELECT {reading.GROUPS[group]} AS value, COUNT(*) FROM "
                                  f"{reading.present(self._version)} GROUP BY value")))

  def bytes_on_disk(self) -> int:
    """Returns the bytes of all memories of the server's database."""
    rows = self._rows("SELECT SUM(pg_total_relation_size(c.oid))::bigint FROM pg_class c JOIN pg_namespace n ON "
                      "n.oid = c.relnamespace WHERE n.nspname = 'pi0rag' AND c.relkind = 'r'")
    return rows[0][0] or 0

  def cache_bytes(self) -> int:
    """Returns 0: pages are the server's."""
    return 0

  def check(self) -> None:
    """Raises DamagedError where the tables contradict each other."""
    found = self._read(lambda connection: reading.problems(connection, self._memory))
    if found:
      raise DamagedError(f"{self.address} is damaged: {'; '.join(found)}")

  def sealed(self) -> bool:
    """Returns True: what a server's pages hold is under the server's own checksums."""
    return True

  def compact(self, keep_versions=None) -> None:
    """Gives up all but the last versions, if some are named, and the space of what is gone back to the tables."""
    self._require_writable()
    if keep_versions is not None:
      self._read(lambda connection: writing.forget(connection, self._memory, keep_versions))
    self._read(lambda connection: connection.execute("VACUUM (ANALYZE) pi0rag.records, pi0rag.history, pi0rag.commits"))

  def close(self) -> None:
    """Ends the connections and the thread; a second call does nothing."""
    self._closed = True
    if self._follower is not None:
      self._follower.close()
    with self._mutex:
      self._drop()

  def _commit(self, kind: str, change: Callable[[writing.Commit], None], token: str | None = None,
              digest: bytes = b"") -> list[int]:
    """Returns the ids that one durable transaction gave.

    Where the connection breaks it is tried again for a while under the same number, so that it happens once, even if
    the break came after the server had made it durable.
    """
    self._require_writable()
    call, patience = uuid.uuid4(), connections.Patience(PATIENCE_S)
    while True:
      try:
        ids = self._try(kind, change, token, digest, call)
        break
      except UnreachableError as error:
        if not patience.wait():
          raise UnreachableError(f"{error}; nothing more is tried after {PATIENCE_S:g} s: whether it was written is "
                                 "not known, and a repetition with the same token is safe") from None
    with contextlib.suppress(UnreachableError):  # it is durable; the follower brings it later
      self._read(self._catch_up)
    return ids

  def _try(self, kind, change, token, digest, call) -> list[int]:
    with self._mutex, self._unbroken() as connection:
      with connection.transaction():
        commit = writing.begin(connection, self._memory, token, digest)
        ids = writing.seen(commit, call)
        if ids is not None:
          return list(ids)
        self._tell(connection)  # an eviction looks at all that there is
        change(commit)
        writing.finish(commit, kind, call)
      return list(range(commit.span[0], commit.span[1] + 1))

  def _catch_up(self, connection) -> float | None:
    """Tells what happened since it was last told, on a connection outside of a transaction; returns the lag in s."""
    return self._tell(connection, alone=True)

  def _tell(self, connection, *, alone: bool = False) -> float | None:
    """Tells what happened since it was last told, as the caller's transaction sees it, or as it is now."""
    with self._telling:
      if self._apply is None or self._pauses:
        return None
      news = reading.news(connection, self._memory, self._told, self.header, alone=alone)
      if news is None:
        return None
      self._apply(news.change)
      self._told = news.version
      return news.lag_s

  def _rows(self, query: str, **asked: Any) -> list[tuple]:
    asked |= {"memory": self._memory, "version": self._version}
    return self._read(lambda connection: connection.cursor(binary=True).execute(query, asked).fetchall())

  def _read(self, ask: Callable[[Any], Any]) -> Any:
    """Returns what is asked of this thread's snapshot, or of the connection: of a new one where that was lost."""
    if getattr(self._moment, "connection", None) is not None:
      return ask(self._moment.connection)
    try:
      with self._mutex, self._unbroken() as connection:
        return ask(connection)
    except UnreachableError:
      with self._mutex, self._unbroken() as connection:
        return ask(connection)

  @contextlib.contextmanager
  def _unbroken(self):
    """Yields the connection, a new one where there is none; the caller holds the mutex."""
    if self._connection is None:
      if self._closed:
        raise Pi0RagError(f"{self.address} is closed: nothing can be read or written")
      self._connection = connections.connect(self.address)
    try:
      with connections.reported(self.address):
        yield self._connection
    except Pi0RagError:
      if self._connection.closed or self._connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        self._drop()
      raise

  def _drop(self) -> None:
    connection, self._connection = self._connection, None
    if connection is not None:
      connection.close()

  def _require_writable(self) -> None:
    state = "is closed" if self._closed else "is open for reading only" if self.read_only else ""
    if state:
      raise Pi0RagError(f"{self.address} {state}: nothing can be written")


def _find(connection, address: ServerAddress) -> tuple[int, Header] | None:
  """Returns (number, header) of a memory, None if there is none. Errors: Pi0RagError for tables that are not ours."""
  if not schema.found(connection, address):
    return None
  row = connection.execute("SELECT id, header FROM pi0rag.memories WHERE name = %s", (address.memory,)).fetchone()
  if row is None:
    return None
  try:
    return row[0], Header(**row[1])
  except (TypeError, Pi0RagError) as error:
    raise DamagedError(f"{address} is damaged: no usable header: {error}") from None


def _check_durability(connection, address: ServerAddress) -> None:
  """Says once where the server acknowledges what its disk does not have yet."""
  query = "SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND "
  off = [name for (name,) in connection.execute(query + "reset_val IN ('off', 'local') ORDER BY name")]
  if off:
    _log.warning("%s: %s off at this server (synchronous_commit is on for what we write): what others, or without "
                 "fsync we, were told is written may be lost when its machine stops", address, " and ".join(off))
