"""The durable truth behind a memory: what a store does, whether it is a file or a server, and how it tells its changes.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.record import Header, Record

# What `breakdown` groups by.
GROUPS = ("kind", "outcome", "failure_kind", "task", "source")
# Returns (ids to evict, places of the incoming records to refuse).
Room = Callable[[], tuple[Sequence[int], Sequence[int]]]
Outcomes = Iterable[tuple[Mapping[int, float], bool]]  # (what records had to say by id, success) of each episode


class UnreachableError(Pi0RagError):
  """The server that holds a memory does not answer."""


class Counters(NamedTuple):
  """What changes of a record that stays."""

  use_count: int
  helped: float
  hurt: float
  episode: int


class Commit(NamedTuple):
  """What a token stands for."""

  token: str
  span: range  # of the ids that its records got, some of which may be gone
  digest: bytes  # of their contents, see `codec.batch_digest`


@dataclasses.dataclass(frozen=True)
class Batch:
  """What one commit added."""

  token: str | None  # see `Memory.add`; None of records that came without one
  ids: Sequence[int]
  records: Sequence[Record]


@dataclasses.dataclass(frozen=True)
class Contents:
  """All that a memory says at one moment."""

  place: str  # as people are told of it
  header: Header
  commits: Sequence[Commit]  # in their order
  records: Mapping[int, Record]  # by rising id
  clock: tuple[int, int]  # episodes and successes
  last_id: int  # of any record that ever was

  def batches(self) -> list[Batch]:
    """Returns the records in the order of their commits, those without a token first."""
    left = dict(self.records)
    told = []
    for token, span, _ in self.commits:
      kept = [identity for identity in span if identity in left]
      told.append(Batch(token, kept, [left.pop(identity) for identity in kept]))
    return ([Batch(None, list(left), list(left.values()))] if left else []) + told


@dataclasses.dataclass(frozen=True)
class Change:
  """How to follow a store: remove, then count, then add. Applied in order, changes make an index what the store is."""

  clock: tuple[int, int]  # episodes and successes that are counted now
  removed: Sequence[int] = ()  # unknown ids are ignored
  counters: Mapping[int, Counters] = dataclasses.field(default_factory=dict)  # likewise
  added: Sequence[tuple[int, Record]] = ()  # in the place of those of the same id
  whole: bool = False  # nothing but `added` is there


class Store(Protocol):
  """Where records live. What `add` has returned is durable; ids rise and are never used again, but after `undo`."""

  header: Header
  remote: bool  # whether reads go over a network

  def add(self, records: Sequence[Record], *, token: str | None = None, room: Room | None = None,
          outcomes: Outcomes = ()) -> list[int]: ...
  def fill(self, contents: Contents) -> None: ...
  def last_id(self) -> int: ...
  def remove(self, ids: Iterable[int], *, episode: str | None = None) -> None: ...
  def add_uses(self, uses: Mapping[int, int]) -> None: ...
  def quarantine(self, ids: Sequence[int], reason: str) -> None: ...
  def quarantined(self) -> dict[int, str]: ...
  def tokens(self) -> list[str]: ...
  def commits(self) -> list[Commit]: ...
  def undo(self, token: str) -> None: ...
  def follow(self, apply: Callable[[Change], None]) -> None: ...
  def paused(self) -> contextlib.AbstractContextManager[None]: ...
  def following(self) -> dict[str, Any]: ...
  def snapshot(self) -> contextlib.AbstractContextManager[None]: ...
  def clock(self) -> tuple[int, int]: ...
  def scan(self, on_damage: Callable[[Pi0RagError], None] | None = None) -> Iterator[tuple[int, Record]]: ...
  def get(self, ids: Iterable[int]) -> list[Record]: ...
  def of_episode(self, name: str) -> list[int]: ...
  def known(self, digests: Iterable[bytes]) -> set[bytes]: ...
  def breakdown(self, group: str) -> dict[str, int]: ...
  def bytes_on_disk(self) -> int: ...
  def cache_bytes(self) -> int: ...
  def check(self) -> None: ...
  def sealed(self) -> bool: ...
  def compact(self, keep_versions: int | None = None) -> None: ...
  def close(self) -> None: ...
