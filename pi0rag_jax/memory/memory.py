"""The memory of a policy: durable records, searched by key, within a capacity.

Threads may call everything at once. A query waits only for other queries and for the moment in which rows
change, never for the disk or the network: others' changes arrive on a thread of the store's.
"""

import collections
import contextlib
import logging
import threading
from typing import Any

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import address, eviction, index, store, verify
from pi0rag_jax.memory.neighbours import Neighbours, largest_says, shares
from pi0rag_jax.memory.record import ANCHOR, CORRECTION, KINDS, Header, Record

_log = logging.getLogger(__name__)
_ADDED_AT_A_TIME = 256  # records


class Memory:
  """A store and the index derived from it. Make one with `Memory.open` or `Memory.load`."""

  def __init__(self, records: store.Store, capacity: int, *, read_only: bool = False):
    index.check_capacity(capacity)
    self.capacity, self.read_only = capacity, read_only
    self._store = records
    self._writing, self._changing = threading.RLock(), threading.RLock()
    self._searching, self._counting = threading.Lock(), threading.Lock()
    self._uses: collections.Counter[int] = collections.Counter()
    self._frozen, self._closed = 0, False
    # Goes up whenever records went, whose ids may come again: what was derived of them is worth nothing.
    self.removals = 0
    self._session = {"queries": 0, "added": 0, "evicted": 0}
    self._index, self._clock = self._read()
    self.header = records.header
    records.follow(self._apply)

  @classmethod
  def open(
    cls, place, *, key_dim, action_horizon, action_dim, encoder, policy, capacity=10_000, create=True,
    read_only=False, chunk_dtype=None, lock_timeout_s=2.0, start="zero", actions="",
  ) -> "Memory":  # fmt: skip
    """Returns the memory at `place`, which is made if there is none and `create` allows it.

    Args:
      place: a folder, or an address on a server (`memory.address`).
      key_dim, action_horizon, action_dim: sizes E, T and A of keys and chunks.
      encoder: name of the recipe that makes the keys. policy: fingerprint of the frozen policy.
      capacity: records to keep; adding more evicts.
      read_only: for evaluation: no lock is taken, nothing is written, uses are not counted. On a server it follows
        what others write, unless the address says a version.
      chunk_dtype: 'float16' (a new memory's default) or 'float32'; None takes an existing memory's.
      lock_timeout_s: how long to wait for another process that writes to a folder; a server takes several at once.
      start: where the policy's flow starts: 'zero', 'draw:<seed>' or 'new'.
      actions: fingerprint of the robot's action space; an empty one, here or in the memory, fits any.
    Errors: Pi0RagError for another header than the memory's; a missing, foreign or damaged file (it is left
      untouched); a memory that another process writes.
    """
    if chunk_dtype is None:
      stored = address.stored_header(place)
      chunk_dtype = stored.chunk_dtype if stored else "float16"
    header = Header(key_dim, action_horizon, action_dim, encoder, policy, chunk_dtype, start, actions)
    return cls._start(place, header, capacity, create=create, read_only=read_only, lock_timeout_s=lock_timeout_s)

  @classmethod
  def load(cls, place, *, capacity=10_000, read_only=True, lock_timeout_s=2.0, version: int | None = None) -> "Memory":
    """Returns the existing memory at `place`, whatever its header says. Errors: as `open`.

    Args:
      version: of a memory on a server: as it was then, whatever others write.
    """
    place, options = address.at_version(place, version), {"read_only": read_only, "lock_timeout_s": lock_timeout_s}
    return cls._start(place, None, capacity, create=False, **options)

  @classmethod
  def _start(cls, place, header, capacity, *, read_only, **options) -> "Memory":
    records = address.open_store(place, header, read_only=read_only, **options)
    try:
      return cls(records, capacity, read_only=read_only)
    except BaseException:
      records.close()
      raise

  def __len__(self) -> int:
    return len(self._index)

  def __enter__(self) -> "Memory":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  @property
  def remote(self) -> bool:
    """Whether records are read over a network, which no decision may wait for; queries never are."""
    return self._store.remote

  @property
  def episodes(self) -> int:
    """Episodes whose outcome was recorded."""
    return self._clock[0]

  @property
  def successes(self) -> int:
    """How many of them succeeded."""
    return self._clock[1]

  def counts(self) -> dict[str, int]:
    """Returns the number of records per kind."""
    with self._searching:
      return {kind: self._index.count(kind) for kind in KINDS}

  def add(self, records, *, token: str | None = None, outcomes=()) -> list[int]:
    """Returns the ids of `records`, all durable; at capacity others are evicted in the same transaction.

    What an episode teaches is whole with `outcomes` and a `token` of its own: its outcome, the clock and its records
    are there together or not at all. A call that is repeated with its token, after a crash perhaps, does nothing and
    returns the same ids; `undo` takes it back. A memory full of corrections gives up incoming anchors and failures at
    once; their ids are returned all the same.

    Args:
      outcomes: (ids, says, success) of each episode that ended, counted before the records are added, as by
        `record_outcome`.
    Errors: Pi0RagError for records that do not fit the header or the capacity, for weights that are wrong; a memory
      that is read-only, frozen or closed; a disk that takes no more.
    """
    records = list(records)
    ended = [(largest_says(ids, says), bool(success)) for ids, says, success in outcomes]
    evicted = 0

    def room():
      nonlocal evicted
      with self._changing:
        victims, refused = self._make_room(records)
      evicted = len(victims) + len(refused)
      return victims, refused

    with self._writing:
      self._require_writable()
      if len(self._index) + len(records) > self.capacity:
        self.flush()
      ids = self._store.add(records, token=token, room=room, outcomes=ended)
      self._session["added"] += len(ids)
      self._session["evicted"] += evicted
      return ids

  def tokens(self) -> list[str]:
    """Returns the tokens that were added and not taken back, in the order of their commits."""
    return self._store.tokens()

  def undo(self, token: str) -> None:
    """Takes back what was added with `token`, durably, so that the memory is as if it had never been.

    Its records go and their ids are free again, those that it evicted return, the utilities that it counted and the
    clock are what they were. Use counts alone stay. Only the last token can be taken back, then the one before it, for
    the last 64; not past a change without a token (`add`, `remove` or `record_outcome`).
    Errors: Pi0RagError for a token that cannot be taken back (nothing changes); otherwise as `add`.
    """
    with self._writing:
      self._require_writable()
      self._store.undo(token)

  def query(self, keys_BE, k: int, *, task: str | None = None, kinds=(CORRECTION, ANCHOR)) -> Neighbours:
    """Returns the k nearest records of each key, each kind with an equal share of the k places.

    Args:
      keys_BE: float[B, E].
      task: look only among records of this task.
      kinds: of KINDS, in the order of the answer; where k is no multiple, later ones get one place more.
    Errors: Pi0RagError for keys of another size, keys that are not finite, k below 1, an unknown kind, a closed memory.
    """
    keys_BE = self._checked_keys(keys_BE)
    wanted = shares(k, tuple(kinds))
    with self._searching:
      if self._closed:
        raise Pi0RagError("the memory is closed: open it again")
      self._session["queries"] += len(keys_BE)
      return self._index.search(keys_BE, wanted, task)

  def record_use(self, ids) -> None:
    """Counts one use of each id (negative ones are padding); `flush` and `close` make the counts durable.

    Does nothing in a memory that is read-only or frozen.
    """
    if self.read_only or self._frozen:
      return
    ids = np.asarray(ids).ravel()
    with self._counting:
      self._uses.update(ids[ids >= 0].tolist())

  def record_outcome(self, ids, says, *, success: bool) -> None:
    """Counts one episode for or against the records that had a say in it; durable on return.

    Queries tell the counts from now on. Does nothing in a memory that is read-only or frozen.

    Args:
      ids: int[...], the records retrieved at the episode's decisions; negative ones are padding.
      says: float[...] of the same shape, at least 0, the weight of each. Over the episode a record counts once, by
        its largest.
      success: how the episode ended.
    Errors: Pi0RagError for shapes that differ, or a weight that is negative or not finite.
    """
    with self._writing:
      if self.read_only or self._frozen:
        largest_says(ids, says)
      else:
        self.add([], outcomes=[(ids, says, success)])

  def flush(self) -> None:
    """Writes the use counts of `record_use` durably; those of a frozen memory wait for its end."""
    with self._writing:
      if not self._frozen:
        self._write_uses()

  def remove(self, ids, *, episode: str | None = None) -> None:
    """Removes records for good, durably; unknown ids are ignored.

    Args:
      episode: what was evicted of the records of this episode is removed for good as well.
    """
    ids = [int(identity) for identity in ids]
    with self._writing:
      self._require_writable()
      self._store.remove(ids, episode=episode)

  def quarantine(self, ids, reason: str) -> None:
    """Keeps records, and from now on returns them from no search: here at once, for others as soon as they are told.

    They take no place, are never evicted, and are not among `records`.
    Errors: Pi0RagError for an id that is not there, or no reason; nothing changes then. Otherwise as `add`.
    """
    if not reason:
      raise Pi0RagError("a quarantine needs a reason: say what is wrong with the records")
    self._set_apart(ids, reason)

  def release(self, ids) -> None:
    """Ends the quarantine of records. Errors: as `quarantine`."""
    self._set_apart(ids, "")

  def _set_apart(self, ids, reason: str) -> None:
    with self._writing:
      self._require_writable()
      self._store.quarantine([int(identity) for identity in ids], reason)

  def quarantined(self) -> dict[int, str]:
    """Returns why records are in quarantine, by id."""
    return self._store.quarantined()

  def records(self):
    """Yields (id, Record) by rising id, from the store, but for those in quarantine."""
    return ((identity, record) for identity, record in self._store.scan() if not record.quarantine)

  def get(self, ids) -> list[Record]:
    """Returns the records with these ids. Errors: Pi0RagError for an id that is not there."""
    return self._store.get(ids)

  def of_episode(self, name: str) -> list[int]:
    """Returns the ids of the records whose provenance names an episode."""
    return self._store.of_episode(name)

  def known(self, digests) -> set[bytes]:
    """Returns which of these content digests (`codec.digest`) the memory has."""
    return self._store.known(digests)

  def near_duplicates(self, kind: str, distance: float) -> list[int]:
    """Returns ids to remove so that no two records of a kind are nearer than `distance` (L2, key units)."""
    with self._writing, self._changing:
      return eviction.crowded(self._index, kind, self._index.count(kind), below=distance)

  def compact(self, keep_versions: int | None = None) -> None:
    """Writes use counts and gives unused disk pages back; of a memory on a server gives up all but `keep_versions`."""
    with self._writing:
      self._require_writable()
      self.flush()
      self._store.compact(keep_versions)

  @contextlib.contextmanager
  def frozen(self):
    """Inside the block nothing changes: additions and removals raise, uses are not counted."""
    with self._writing:
      self._frozen += 1
    try:
      with self._store.paused():
        yield self
    finally:
      with self._writing:
        self._frozen -= 1

  def statistics(self) -> dict[str, Any]:
    """Returns counts by group, sizes, this session's numbers, and how a server is followed, also while it is away."""
    try:
      found: dict[str, Any] = {f"by_{group}": self._store.breakdown(group) for group in store.GROUPS}
      found["bytes_on_disk"] = self._store.bytes_on_disk()
    except store.UnreachableError:
      found = {"by_kind": {kind: count for kind, count in sorted(self.counts().items()) if count}}
    return {"records": len(self), "capacity": self.capacity, **found, "memory_bytes": self.memory_bytes(),
            **self._session, **self._store.following()}

  def following(self) -> dict[str, Any]:
    """Returns, of a memory on a server, its `version` here, whether the server is `connected`, and how late the last
    change arrived (`lag_ms`). Asks nobody.
    """
    return self._store.following()

  def memory_bytes(self) -> int:
    """Returns the bytes that index and page cache take when full, however much of it is in use now."""
    return self._index.nbytes() + self._store.cache_bytes()

  def index_problems(self) -> list[str]:
    """Returns where index and store differ, one line each; none if they agree."""
    with self._writing, self._store.snapshot():
      return verify.compare(self._store, self._index)

  def close(self) -> None:
    """Writes the use counts and lets the next writer in; a second call does nothing."""
    with self._writing:
      if self._closed:
        return
      try:
        self._write_uses()
      except store.UnreachableError as error:  # a robot whose server is away can still be stopped
        _log.warning("use counts of this session are lost: %s", error)
      finally:
        with self._searching:
          self._closed = True
        self._store.close()

  def _read(self) -> tuple[index.MemoryIndex, tuple[int, int]]:
    """Returns the index of what the store has, and its clock, both of one moment."""
    with self._store.snapshot():
      count = sum(self._store.breakdown("kind").values())
      # What only reads needs no free rows; what was written with a larger capacity is still all there.
      rows = max(count, 1 if self.read_only else self.capacity)
      return index.build(self._store.header, rows, self._store.scan()), self._store.clock()

  def _apply(self, change: store.Change) -> None:
    """Brings the index to where the store is now."""
    with self._changing:
      searched = [(identity, record) for identity, record in change.added if not record.quarantine]
      self._grow(len(self._index) + len(searched))
      replaced = [identity for identity, _ in change.added if identity in self._index]
      gone = self._index.ids() if change.whole else [*change.removed, *replaced]
      with self._searching:
        self._index.remove(gone)
        self.removals += bool(gone)
        for identity, counters in change.counters.items():
          self._index.count_again(identity, counters)
      # In parts: a query waits for one of them, however much came at once.
      for first in range(0, len(searched), _ADDED_AT_A_TIME):
        with self._searching:
          for identity, record in searched[first : first + _ADDED_AT_A_TIME]:
            self._index.add(identity, record)
      self._clock = change.clock
      with self._counting:
        for identity in gone:  # not for a later record of the same id
          self._uses.pop(identity, None)

  def _grow(self, rows: int) -> None:
    """Makes rows for what others added, twice as many as there are."""
    if rows > self._index.capacity:
      larger = self._index.resized(max(rows, 2 * self._index.capacity))
      with self._searching:
        self._index = larger

  def _make_room(self, records) -> tuple[list[int], list[int]]:
    """Returns what `eviction.choose` says for adding `records`."""
    if len(records) > self.capacity:
      raise Pi0RagError(f"{len(records)} records at once, the capacity is {self.capacity}: raise it or split")
    overflow = len(self._index) + len(records) - self.capacity
    if overflow <= 0:
      return [], []
    return eviction.choose(self._index, overflow, [record.kind for record in records])

  def _write_uses(self) -> None:
    """Writes the pending use counts; the caller holds the writer's lock."""
    with self._counting:
      uses, self._uses = self._uses, collections.Counter()
    if not uses:
      return
    try:
      self._store.add_uses(uses)
    except Pi0RagError:
      with self._counting:
        self._uses.update(uses)
      raise

  def _require_writable(self) -> None:
    state = "closed" if self._closed else "read-only" if self.read_only else "frozen" if self._frozen else ""
    if state:
      raise Pi0RagError(f"the memory is {state}: nothing can be written")

  def _checked_keys(self, keys_BE) -> np.ndarray:
    keys_BE = np.ascontiguousarray(keys_BE, np.float32)
    if keys_BE.ndim != 2 or keys_BE.shape[1] != self.header.key_dim:
      raise Pi0RagError(
        f"keys have shape {keys_BE.shape}, the memory holds keys of {self.header.key_dim} dims "
        f"(encoder '{self.header.encoder}'): query with [B, {self.header.key_dim}]"
      )
    if not np.isfinite(keys_BE).all():
      raise Pi0RagError("keys have values that are not finite: the policy's features are broken")
    return keys_BE
