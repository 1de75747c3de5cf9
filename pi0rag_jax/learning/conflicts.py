"""Corrections of nearly one situation that ask for different things: within a memory, or between several."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import CORRECTION, Record
from pi0rag_jax.policy import keys
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering import paths, rules
from pi0rag_jax.steering.retrieval import measured_unit

_ROWS = 256  # of which distances are worked out at once
_SAID = ("robot", "teacher", "source", "episode", "tick")  # of a record's provenance, in this order


@dataclasses.dataclass(frozen=True)
class Place:
  """A record of one of some memories."""

  memory: int  # which of them
  id: int
  record: Record


@dataclasses.dataclass(frozen=True)
class Conflict:
  """Two corrections of nearly one situation that ask for different things; the first is the older."""

  first: Place
  second: Place
  distance: float  # of the keys, in units
  apart: float  # of what they ask for, path cost


def of_memory(memory: Memory, space: ActionSpace, unit: float | None) -> list[Conflict]:
  """Returns the conflicts between corrections of different episodes, those that are furthest apart first.

  Args:
    unit: by which distances of keys are divided; None measures it on the records.
  """
  places = [Place(0, identity, record) for identity, record in memory.records()]
  found = conflicting(places, space, unit, whose=lambda place: _episode(place.record))
  return sorted(found, key=lambda conflict: -conflict.apart)


def conflicting(places: Sequence[Place], space: ActionSpace, unit: float | None, *,
                whose: Callable[[Place], Hashable]) -> Iterator[Conflict]:
  """Yields the conflicts between corrections that are not of the same (`whose`).

  They are of one task, as near in key and in the policy's own plan as steering's kernels are wide, and what they ask
  for is further apart than the width of a mode.
  """
  unit = measured_unit(place.record for place in places) if unit is None else unit
  if not math.isfinite(unit):
    return
  rule = rules.preset("residual")
  groups = collections.defaultdict(list)
  for place in places:
    if place.record.kind == CORRECTION:
      groups[place.record.task].append(place)
  for group in groups.values():
    keys_ME = np.stack([place.record.key for place in group])
    owners: dict[Hashable, int] = {}
    owner_M = np.array([owners.setdefault(whose(place), len(owners)) for place in group])
    for first in range(0, len(group), _ROWS):
      block_RM = keys.distances(keys_ME[first : first + _ROWS], keys_ME) / unit
      near_RM = (block_RM <= rule.tau) & (owner_M[first : first + _ROWS, None] < owner_M)
      for row, column in np.argwhere(near_RM).tolist():
        pair = sorted((group[first + row], group[column]), key=lambda place: place.record.created)
        plans, apart = _apart(pair[0].record, pair[1].record, space)
        if plans <= rule.plan_tau and apart > rule.mode_width:
          yield Conflict(pair[0], pair[1], float(block_RM[row, column]), apart)


def in_words(conflict: Conflict, names: Sequence[str] = ()) -> str:
  """Returns a conflict in one line.

  Args:
    names: of the memories, where there are several.
  """
  first, second = (f"record {place.id}{f' of {names[place.memory]}' if names else ''}"
                   for place in (conflict.first, conflict.second))
  origins = "" if names else "".join(f"; {place.id}: {_origin(place.record)}"
                                     for place in (conflict.first, conflict.second))
  return (f"task '{conflict.first.record.task}': {second} contradicts {first}, {conflict.distance:.2f} units away: "
          f"what they ask for is {conflict.apart:.2f} apart{origins}")


def as_json(conflict: Conflict) -> dict[str, Any]:
  """Returns a conflict as plain JSON, of which the first record is the older."""
  sides = [{"id": place.id, "created": place.record.created, "helped": place.record.helped, "hurt": place.record.hurt,
            **{name: place.record.provenance[name] for name in _SAID if name in place.record.provenance}}
           for place in (conflict.first, conflict.second)]
  return {"task": conflict.first.record.task, "distance": conflict.distance, "apart": conflict.apart, "records": sides}


def by_origin(conflicts: Iterable[Conflict]) -> list[tuple[str, int]]:
  """Returns which robots or teachers most conflicts have a side of, the most first."""
  sides = itertools.chain.from_iterable((conflict.first, conflict.second) for conflict in conflicts)
  counted = collections.Counter(_who(place.record) for place in sides)
  return counted.most_common()


def _who(record: Record) -> str:
  said = [f"{name} {record.provenance[name]}" for name in ("robot", "teacher") if record.provenance.get(name)]
  return ", ".join(said) or "nobody named"


def _origin(record: Record) -> str:
  said = {name: record.provenance.get(name) for name in _SAID}
  return ", ".join(f"{name} {value}" for name, value in said.items() if value not in (None, ""))


def _episode(record: Record) -> Hashable:
  """Returns what tells episodes apart: records of one never contradict each other, one led to the other."""
  provenance = record.provenance
  return (provenance.get("memory"), provenance.get("episode"), provenance.get("condition"), provenance.get("seed"))


def _apart(first: Record, second: Record, space: ActionSpace) -> tuple[float, float]:
  """Returns how far apart two records' own plans are, and what they ask for, as path cost."""
  base_TA = first.base_chunk.astype(np.float32) - second.base_chunk
  asked_TA = (first.corrected_chunk.astype(np.float32) - first.base_chunk) - (
    second.corrected_chunk.astype(np.float32) - second.base_chunk)
  length = lambda chunk_TA: float(np.linalg.norm(paths.scaled(paths.to_path(chunk_TA, space), space)))  # noqa: E731
  return length(base_TA), length(asked_TA)
