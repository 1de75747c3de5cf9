"""Why a steered action was what it was: which records had a say, who taught them and when, and what they ask for."""

import dataclasses
import datetime
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import kept
from pi0rag_jax.learning.kept import Decision
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import CORRECTION, KINDS, Record
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering import paths
from pi0rag_jax.steering.retrieval import UnitDistance

NEAREST = 3  # neighbours that are told of a record
_ORIGIN = ("source", "episode", "tick")  # said in words of their own


class Explainer:
  """Explains the records of a memory."""

  def __init__(self, memory: Memory, space: ActionSpace | None, unit: float | None):
    """
    Args:
      space: what the actions mean; None leaves out how far a record leads.
      unit: by which distances of keys are divided; None measures it on the memory.
    """
    self._memory, self._space = memory, space
    self._unit = float(UnitDistance(memory)) if unit is None else unit
    self._all = dict(memory.records())

  def record(self, identity: int) -> dict[str, Any]:
    """Returns what is known of a record. Errors: Pi0RagError for one that is not there."""
    (record,) = self._memory.get([identity])
    origin = {name: value for name, value in record.provenance.items() if name not in _ORIGIN}
    found = {
      "id": identity, "kind": record.kind, "outcome": record.outcome, "failure_kind": record.failure_kind,
      "task": record.task, "prompt": record.prompt, "taught_by": record.provenance.get("source", ""),
      "when": when(record.created), "episode": record.provenance.get("episode", record.provenance.get("seed")),
      "tick": record.provenance.get("tick"), "origin": origin, "helped": record.helped, "hurt": record.hurt,
      "uses": record.use_count, "nearest": self._nearest(identity, record)}
    return found if self._space is None else found | self._leads(record)

  def decision(self, decision: Decision, ended: float | None) -> dict[str, Any]:
    """Returns why a decision was what it was.

    Args:
      ended: when the episode did, s since 1970; a record that is younger has only the id of the one that had a say.
    """
    records = []
    for identity, weight in decision.records:
      record = self._all.get(identity)
      if record is None or (ended is not None and record.created > ended):
        records.append({"id": identity, "weight": weight, "gone": True})
      else:
        records.append({"weight": weight, **self.record(identity)})
    return {"tick": decision.tick, "acted": decision.by, "records_used": decision.used,
            "differs_from_own": decision.apart, "records": records}

  def _leads(self, record: Record) -> dict[str, float]:
    assert self._space is not None, "asked only where it is known"
    difference_TA = record.corrected_chunk.astype(np.float32) - record.base_chunk
    path_TA = paths.to_path(difference_TA, self._space)
    return {"differs_mean": float(paths.disagreement(path_TA, self._space)),
            "differs_at_end": float(paths.disagreement(path_TA[-1:], self._space))}

  def _nearest(self, identity: int, record: Record) -> list[dict[str, Any]]:
    wanted = len(KINDS) * (NEAREST + 1)  # of each kind as many, and itself
    found = self._memory.query(record.key[None], wanted, kinds=KINDS)
    order = np.argsort(found.distances_BK[0], kind="stable")
    rows = [row for row in order if found.mask_BK[0, row] and found.ids_BK[0, row] != identity][:NEAREST]
    near = []
    for row in rows:
      other = self._all.get(int(found.ids_BK[0, row]))
      if other is not None:
        near.append({"id": int(found.ids_BK[0, row]), "kind": other.kind,
                     "distance": float(found.distances_BK[0, row]) / self._unit,
                     "taught_by": other.provenance.get("source", ""), "episode": other.provenance.get("episode")})
    return near


@dataclasses.dataclass(frozen=True)
class Told:
  """The decisions of an episode, wherever they were found."""

  decisions: Sequence[Decision]
  ended: float | None  # s since 1970; None while it is under way, or where nobody wrote it down
  where: str


def of_kept(folder: str | os.PathLike, episode: str) -> Told:
  """Returns the decisions of a kept episode. Errors: Pi0RagError if it is not there."""
  names = []
  for each in kept.read(folder):
    names.append(each.facts.episode)
    if each.facts.episode == episode:
      return Told(each.facts.decisions, each.facts.ended, str(pathlib.Path(folder)))
  raise Pi0RagError(f"no episode '{episode}' in '{folder}', which holds {len(names)}: {', '.join(names[:5])}"
                    + (" ..." if len(names) > 5 else ""))


def chosen(told: Told, number: int | None, episode: str) -> list[Decision]:
  """Returns one decision, or all of them. Errors: Pi0RagError for a number that is not there."""
  if number is None:
    return list(told.decisions)
  if not 0 <= number < len(told.decisions):
    raise Pi0RagError(f"the episode '{episode}' has decisions 0 to {len(told.decisions) - 1}, not {number}")
  return [told.decisions[number]]


def in_words(found: Mapping[str, Any]) -> str:
  """Returns what `Explainer.record` found, for people."""
  say = f" with a weight of {found['weight']:.2f}" if "weight" in found else ""
  if found.get("gone"):
    return f"record {found['id']}{say} is no longer in the memory"
  failed = f" ({found['failure_kind']})" if found["failure_kind"] else ""
  origin = "".join(f", {name} {value}" for name, value in found["origin"].items())
  lines = [f"record {found['id']}{say}: {found['kind']}, of a {found['outcome']}{failed}",
           f"  task '{found['task']}', prompt '{found['prompt']}'",
           f"  taught by {found['taught_by']} on {found['when']}, in episode {found['episode']} at tick "
           f"{found['tick']}{origin}"]
  if "differs_mean" in found:
    what = "leads" if found["kind"] == CORRECTION else "is"
    lines.append(f"  {what} {found['differs_mean']:.2f} away from what the policy would have done, "
                 f"{found['differs_at_end']:.2f} at the chunk's end (path cost, 1 is about 1 cm)")
  lines.append(f"  helped {found['helped']:.1f} and hurt {found['hurt']:.1f} episodes, used {found['uses']} times")
  near = [f"{each['id']} ({each['kind']} by {each['taught_by']}, {each['distance']:.2f} units away)"
          for each in found["nearest"]]
  return "\n".join([*lines, f"  nearest: {', '.join(near) or 'none'}"])


def decision_in_words(number: int, found: Mapping[str, Any], shown: int) -> str:
  """Returns what `Explainer.decision` found, for people, with the records that had the most say."""
  head = (f"decision {number}, tick {found['tick']}: {found['acted']} acted; {found['records_used']} records were near "
          f"and changed the policy's own path by {found['differs_from_own']:.2f} on average")
  texts = [in_words(record) for record in found["records"][:shown]]
  more = found["records_used"] - len(texts)
  return "\n".join([head, *texts, *([f"  {more} others had less of a say"] if more > 0 else [])])


def when(seconds: float) -> str:
  """Returns a time for people, UTC."""
  return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
