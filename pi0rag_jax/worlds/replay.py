"""Episodes that can be seen again: what was executed, tick by tick, and the world that shows it once more.

Pictures of a stream take gigabytes, what was executed some kilobytes. A world that begins with the same seed and
executes the same comes to the same moments.
"""

import collections
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from pi0rag_jax import files, schema
from pi0rag_jax.data.validation import POLICY
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds.batch import Advance, BatchEnv, Moment, Start
from pi0rag_jax.worlds.episode import Trace
from pi0rag_jax.worlds.journal import Array, packed, unpacked


@dataclasses.dataclass(frozen=True)
class Executed:
  """An episode from its start, as its robot was driven."""

  stream: str
  seed: int
  success: bool
  ticks_N: np.ndarray  # int[N], of each decision
  by: tuple[str, ...]  # N, who acted from each decision on
  actions_FA: np.ndarray  # float32[F, A], one per tick

  @classmethod
  def of_trace(cls, stream: str, trace: Trace) -> "Executed":
    """Returns what was executed in a trace that did not begin with a rewind."""
    return cls(stream, trace.job.seed, trace.outcome == "success", np.array([step.tick for step in trace.steps]),
               tuple(step.by for step in trace.steps), trace.executed().astype(np.float32))

  @property
  def helped_F(self) -> np.ndarray:
    """Returns bool[F]: the ticks at which somebody else than the policy acted."""
    lengths_N = np.diff(self.ticks_N, append=len(self.actions_FA))
    return np.repeat([by != POLICY for by in self.by], lengths_N)


  @property
  def first_help(self) -> int | None:
    """The tick from which it had its whole time limit again, since somebody else began to act."""
    return next((int(tick) for tick, by in zip(self.ticks_N, self.by) if by != POLICY), None)


class _Line(msgspec.Struct):
  stream: str
  seed: int
  success: bool
  ticks: list[int]
  by: list[str]
  actions: Array


class ExecutedLog:
  """A file of episodes, which this process alone appends to."""

  def __init__(self, path: str | os.PathLike):
    self._log = files.LineLog(path)

  def append(self, episode: Executed) -> None:
    """Returns once an episode is on disk."""
    self._log.append(msgspec.json.encode(_Line(
      episode.stream, episode.seed, episode.success, episode.ticks_N.tolist(), list(episode.by),
      packed(episode.actions_FA))))

  def close(self) -> None:
    """Releases the file to other processes."""
    self._log.close()

  def __enter__(self) -> "ExecutedLog":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def read(path: str | os.PathLike) -> dict[tuple[str, int], Executed]:
  """Returns the episodes of a file by stream and seed; of one that ran again after a kill, the last."""
  lines = [schema.parse(line, _Line, f"{path} is damaged") for line in files.whole_lines(path)]
  return {(line.stream, line.seed): Executed(line.stream, line.seed, line.success, np.array(line.ticks), tuple(line.by),
                                             unpacked(line.actions)) for line in lines}


def replay(env: BatchEnv, episodes: Iterable[Executed], *, every_tick: bool = False
           ) -> Iterator[tuple[Executed, list[Mapping[str, Any]]]]:
  """Yields each episode with what the robot saw at its decisions, or at each of its ticks.

  Errors: Pi0RagError where the world fails, or ends an episode before its time: it is not the one that it was.
  """
  waiting = collections.deque(episodes)
  running: dict[int, tuple[Executed, list[Mapping[str, Any]]]] = {}
  while waiting or running:
    commands: dict[int, Any] = {}
    for slot in range(env.slots):
      if slot in running:
        episode, seen = running[slot]
        begin, end = _looks(episode, every_tick)[len(seen) - 1 : len(seen) + 1]
        commands[slot] = Advance(episode.actions_FA[begin:end], more_time=begin == episode.first_help)
      elif waiting:
        running[slot] = waiting.popleft(), []
        commands[slot] = Start(running[slot][0].seed)
    answers = env.run(commands)
    for slot, answer in sorted(answers.items()):
      episode, seen = running[slot]
      seen.append(_seen(episode, answer))
      if len(seen) == len(_looks(episode, every_tick)):
        yield running.pop(slot)


def _looks(episode: Executed, every_tick: bool) -> np.ndarray:
  return np.arange(len(episode.actions_FA)) if every_tick else episode.ticks_N


def _seen(episode: Executed, answer: Moment) -> Mapping[str, Any]:
  if answer.error or answer.done:
    why = answer.error or "it ended before its time"
    raise Pi0RagError(f"episode {episode.seed} of stream '{episode.stream}' cannot be seen again: {why}")
  return answer.observation
