"""Memories of several robots as one: duplicates once, and corrections that contradict each other named."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.learning.conflicts import Conflict, Place, conflicting, in_words
from pi0rag_jax.memory import address, anew, codec
from pi0rag_jax.memory.record import Record
from pi0rag_jax.memory.store import Batch, Contents
from pi0rag_jax.robots.robot import ActionSpace

KEEP, NEWEST, REFUSE = CONFLICTS = ("keep", "newest", "refuse")
FROM = "memory"  # in the provenance, the memory that a record was in before


@dataclasses.dataclass(frozen=True)
class Merged:
  """What became of several memories."""

  records: int
  duplicates: int
  conflicts: Sequence[Conflict]
  dropped: int  # older ones of conflicts
  renamed: Mapping[str, str]  # tokens that two memories had for different things


def merge(out: str | os.PathLike, directories: Sequence[str | os.PathLike], *, space: ActionSpace | None,
          unit: float | None, conflicts: str = KEEP, capacity: int = 10_000) -> Merged:
  """Returns what became of the memories in `directories`, of which `out` is the union.

  Records keep what they helped and hurt, and how long ago that was; the episodes of all are added up. `memory` in their
  provenance is the folder that they come from. A kill leaves the whole union or nothing.

  Args:
    space: what the actions mean; None finds no conflicts.
    unit: by which distances of keys are divided; None measures it on the records.
    conflicts: 'keep' keeps both, and steering follows what most of the weight agrees on; 'newest' drops the older ones;
      'refuse' writes nothing where there is one.
    capacity: refuse to hold more.
  Errors: Pi0RagError for memories of different headers, and where something is at `out`.
  """
  if conflicts not in CONFLICTS:
    raise unknown_name("way with conflicts", conflicts, CONFLICTS)
  if len(directories) < 2:
    raise Pi0RagError("a merge takes two memories or more")
  if len({address.same_as(directory) for directory in directories}) < len(directories):
    raise Pi0RagError("one of the memories is named twice")
  parts = [anew.read(directory) for directory in directories]
  for part in parts[1:]:
    parts[0].header.require(part.header, parts[0].place)
  batches, duplicates, renamed = _united(parts)
  places = {id(record): Place(memory, identity, record) for memory, batch in batches
            for identity, record in zip(batch.ids, batch.records)}
  found = [] if space is None else list(
    conflicting(list(places.values()), space, unit, whose=lambda place: place.memory))
  if found and conflicts == REFUSE:
    raise Pi0RagError(f"{len(found)} conflicts, the first: {in_words(found[0], list(map(address.shown, directories)))}")
  older = {id(conflict.first.record) for conflict in found} if conflicts == NEWEST else set()
  episodes = sum(part.clock[0] for part in parts)
  kept = [Batch(batch.token, (), [_moved(record, parts[memory], episodes) for record in batch.records
                                  if id(record) not in older]) for memory, batch in batches]
  records = sum(len(batch.records) for batch in kept)
  if records > capacity:
    raise Pi0RagError(f"{records} records exceed the capacity {capacity}: raise it, or evict with `compact` first")
  anew.write(out, parts[0].header, kept, episodes=episodes, successes=sum(part.clock[1] for part in parts))
  return Merged(records, duplicates, found, len(older), renamed)


def _united(parts: Sequence[Contents]) -> tuple[list[tuple[int, Batch]], int, dict[str, str]]:
  """Returns each memory's batches with its number, by rising time and without duplicates; the number of these; and the
  tokens that became others.
  """
  seen: set[bytes] = set()
  tokens: set[str] = set()
  batches, duplicates, renamed = [], 0, {}
  for memory, part in enumerate(parts):
    for batch in part.batches():
      fresh = []
      for identity, record in zip(batch.ids, batch.records):
        digest = _digest(record, part)
        if digest in seen:
          duplicates += 1
        else:
          seen.add(digest)
          fresh.append((identity, record))
      token = batch.token
      if token in tokens:
        if not fresh:
          continue  # the same, learned by both
        token = renamed[f"{token} of {part.place}"] = _free(f"{token} ({address.name_of(part.place)})", tokens)
        suffix = token.removeprefix(batch.token or "")
        fresh = [(identity, _of_episode(record, suffix)) for identity, record in fresh]
      if token is not None:
        tokens.add(token)
      batches.append((memory, Batch(token, [identity for identity, _ in fresh], [record for _, record in fresh])))
  begun = lambda entry: min((record.created for record in entry[1].records), default=math.inf)  # noqa: E731
  return sorted(batches, key=begun), duplicates, renamed


def _digest(record: Record, part: Contents) -> bytes:
  """Returns what identifies a record's content, wherever it was before."""
  provenance = {name: value for name, value in record.provenance.items() if name != FROM}
  return codec.digest(dataclasses.replace(record, provenance=provenance), part.header)


def _free(token: str, taken: set[str]) -> str:
  number = 2
  while token in taken:
    token, number = f"{token} {number}", number + 1
  return token


def _of_episode(record: Record, suffix: str) -> Record:
  """Returns the record under another name of its episode, where another memory has an episode of the same name."""
  episode = record.provenance.get("episode")
  if not isinstance(episode, str):
    return record
  return dataclasses.replace(record, provenance={**record.provenance, "episode": episode + suffix})


def _moved(record: Record, part: Contents, episodes: int) -> Record:
  """Returns the record with where it was, and as old on the new clock as on its own."""
  age = max(part.clock[0] - record.episode, 0)
  provenance = {FROM: address.name_of(part.place), **record.provenance}
  return dataclasses.replace(record, provenance=provenance, episode=episodes - min(age, episodes))
