"""Labels: what a person says afterwards of a moment at which the policy acted, namely what should have been done there.

The decision is found in the server's log, as long as that still has it; or the policy makes it anew of what was kept of
the episode. A label becomes one correction, which is deleted and taken back like every record.
"""

import contextlib
import dataclasses
import os
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from pi0rag_jax.data.validation import POLICY
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import kept, lessons
from pi0rag_jax.learning.lessons import RecordContext
from pi0rag_jax.memory import codec, tokens
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import Record
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.robots.robot import ActionSpace, Robot
from pi0rag_jax.serving import episode_log, messages, pictures
from pi0rag_jax.serving.pictures import KeptEpisodes
from pi0rag_jax.steering import paths
from pi0rag_jax.worlds.episode import Step

_LENGTHS = ("away", "right", "up")  # of a robot's `Teleop`


class Label(msgspec.Struct, forbid_unknown_fields=True):
  """A label as a message says it."""

  episode: str
  tick: int  # at which the policy decided
  chunk: Any  # float[T, A], in the robot's units


@dataclasses.dataclass(frozen=True)
class _Recalled:
  """An episode that can be labelled."""

  ticks: Sequence[int]  # of its decisions
  by: Sequence[str]  # who acted from each on
  done_FA: np.ndarray  # what was executed, from the first decision on
  context: RecordContext
  steps: Sequence[Step]  # the decisions, where the log has them
  kept: kept.KeptEpisode | None


class Labels:
  """The moments of a memory's episodes, and the records of their labels. Threads may call everything at once."""

  def __init__(self, log: str | os.PathLike, robot: Robot, space: ActionSpace, horizon: int, *,
               policy: Policy | None = None, episodes: str | None = None):
    """
    Args:
      log: a server's, which may write it meanwhile.
      horizon: T.
      policy: makes decisions anew that the log has no longer; it takes the time of one inference.
      episodes: folder of kept episodes.
    """
    self.space, self.horizon, self._robot = space, horizon, robot
    self._log, self._policy = pathlib.Path(log), policy
    self._kept = None if episodes is None else KeptEpisodes(episodes)
    self._busy = threading.Lock()

  def moments(self, name: str) -> dict[str, Any]:
    """Returns when an episode's decisions were made and who acted, and how a gesture is made.

    Errors: Pi0RagError that says why the episode cannot be labelled.
    """
    with self._busy:
      recalled = self._recall(name)
    return {"moments": [[int(tick), by] for tick, by in zip(recalled.ticks, recalled.by)], "horizon": self.horizon,
            "tick_s": self._robot.tick_s, "entries": self._entries(), "plane": self._plane()}

  def moment(self, name: str, tick: int) -> dict[str, Any]:
    """Returns what was seen at a decision, and what was `done` within a chunk, as a gesture. Errors: as `moments`."""
    with self._busy:
      recalled = self._recall(name)
      self._check(recalled, name, tick)
      seen = recalled.kept
      shown = [] if seen is None else pictures.of_frame(seen.dataset, seen.number, seen.frame(tick))
    first = tick - recalled.ticks[0]
    done_TA = recalled.done_FA[first : first + self.horizon].astype(np.float32)
    return {"pictures": shown, "done": [float(value) for value in paths.to_path(done_TA, self.space)[-1]]}

  def gesture(self, name: str, tick: int, gesture: Sequence[float]) -> Label:
    """Returns the label of a gesture. Errors: as `lessons.straight`."""
    return Label(name, tick, lessons.straight(np.asarray(gesture, float), self.space, self.horizon))

  def teach(self, memory: Memory, label: Label) -> dict[str, Any]:
    """Returns the id of the record of a label, once it is durable; a second time it teaches nothing more.

    Errors: Pi0RagError for an episode that the memory was not taught or that nobody can recall, for a moment at which
      somebody else acted, and for a chunk that the robot does not take.
    """
    with self._busy:
      if tokens.token_of(label.episode) not in memory.tokens():
        raise Pi0RagError(f"the memory was not taught the episode '{messages.shown(label.episode)}': it is still under "
                          "way, was taken back, or never was")
      record = self._record(label)
      same = codec.digest(record, memory.header)
      ids = memory.of_episode(label.episode)
      for identity, other in zip(ids, memory.get(ids)):
        if codec.digest(other, memory.header) == same:
          return {"id": label.episode, "records": [identity]}
      number = sum(tokens.is_label(token) and tokens.tells_of(token, label.episode) for token in memory.tokens())
      return {"id": label.episode,
              "records": memory.add([record], token=tokens.label_token(label.episode, number))}

  def _record(self, label: Label) -> Record:
    recalled = self._recall(label.episode)
    at = self._check(recalled, label.episode, label.tick)
    where = f"at tick {label.tick} of the episode '{messages.shown(label.episode)}'"
    if recalled.by[at] != POLICY:
      raise Pi0RagError(f"{where} {recalled.by[at]} acted: only what the policy did is labelled")
    try:
      chunk_TA = np.asarray(label.chunk, np.float32)
    except (TypeError, ValueError, OverflowError):
      chunk_TA = np.zeros(0, np.float32)
    if chunk_TA.shape != (self.horizon, self.space.dim):
      raise Pi0RagError(f"the label {where} has shape {list(chunk_TA.shape)}, allowed: numbers "
                        f"[{self.horizon}, {self.space.dim}]")
    lessons.check_limits(chunk_TA, self.space, f"the label {where}")
    return lessons.afterwards(self._decision(recalled, at), chunk_TA, recalled.context)

  def _check(self, recalled: _Recalled, name: str, tick: int) -> int:
    """Returns the place of a decision."""
    if tick not in recalled.ticks:
      raise Pi0RagError(f"nothing was decided at tick {tick} of the episode '{messages.shown(name)}': its "
                        f"{len(recalled.ticks)} decisions are at {recalled.ticks[0]} to {recalled.ticks[-1]}")
    return list(recalled.ticks).index(tick)

  def _recall(self, name: str) -> _Recalled:
    episode = episode_log.Open(name)
    with contextlib.suppress(FileNotFoundError):
      episode = episode_log.logged(self._log, name)
    steps = [step for step in episode.steps if len(episode_log.done(step))]
    found = self._find(name)
    if steps:
      context = RecordContext(episode.task, episode.prompt, episode_log.origin(name, episode.robot),
                              episode.failure_kind)
      done_FA = np.concatenate([episode_log.done(step) for step in steps])
      return _Recalled([step.tick for step in steps], [step.by for step in steps], done_FA, context, steps, found)
    if found is None or self._policy is None:
      raise Pi0RagError(f"the server's log knows nothing of the episode '{messages.shown(name)}' any more, " + (
        "and it was not kept: start the server with --keep_episodes" if self._policy is not None else
        "and no policy is here to decide anew: label it at a server with --learn and --keep_episodes"))
    prompt = found.data.prompts[0]
    context = RecordContext(found.facts.task, "" if prompt == kept.NO_PROMPT else prompt,
                            episode_log.origin(name, found.facts.robot), str(found.data.metadata.get("failure") or ""))
    decided = found.facts.decisions
    return _Recalled([decision.tick for decision in decided], [decision.by for decision in decided],
                     found.data.actions, context, [], found)

  def _find(self, name: str) -> kept.KeptEpisode | None:
    """Returns a kept episode. Errors: Pi0RagError for one that no server kept."""
    found = None if self._kept is None else self._kept.find(name)
    if found is None:
      return None
    dataset, number = found
    return kept.as_kept(dataset, number, dataset.read_episode(number, images=False))

  def _decision(self, recalled: _Recalled, at: int) -> Step:
    """Returns a decision with its key and the policy's own chunk."""
    if recalled.steps:
      return recalled.steps[at]
    assert recalled.kept is not None and self._policy is not None, "as `_recall` looks for"
    *_, (tick, key_E, base_TA) = kept.asked_again(self._policy, recalled.kept, [recalled.ticks[at]], batch=1)
    return Step(tick, None, key_E, base_TA, base_TA, 0, np.zeros(0, int), np.zeros(0))

  def _entries(self) -> list[dict[str, Any]]:
    """Returns each entry of a gesture: its name, its limits (None: none), and `sign` where the name points the other
    way. The `cost` of a length is about how many centimetres a unit has.
    """
    ticks_A = np.where(self.space.integrates, self.horizon, 1)
    limits = [[float(value) if np.isfinite(value) else None for value in ticks_A * np.array(limit)]
              for limit in (self.space.low, self.space.high)]
    entries = [{"name": f"action {entry}", "sign": 1, "integrates": integrates, "low": low, "high": high, "cost": cost,
                "is_length": False}
               for entry, (integrates, low, high, cost) in enumerate(zip(
                 self.space.integrates, *limits, self.space.cost))]
    if self._robot.teleop is not None:
      for name, move in self._robot.teleop.moves.items():
        entries[move[0]] |= {"name": name, "sign": move[1], "is_length": name in _LENGTHS}
    return entries

  def _plane(self) -> list[int] | None:
    """Returns the entries of a gesture that people draw to the right and up; None where fewer are displacements."""
    teleop = self._robot.teleop
    if teleop is not None:
      return [teleop.right[0], teleop.away[0]]
    moves = np.flatnonzero(self.space.integrates)[:2].tolist()
    return moves if len(moves) == 2 else None
