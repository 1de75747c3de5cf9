"""The log of episodes over the wire: decisions, what came of them, and that an episode is over.

It lies in the memory's folder, so that a robot whose server was killed goes on in the same episode, and so that what
was decided can be looked up afterwards, until the file is written anew.
"""

import collections
import dataclasses
import importlib.metadata
import os
import pathlib
from collections.abc import Iterator

import msgspec
import numpy as np

from pi0rag_jax import files, schema
from pi0rag_jax.data.validation import POLICY
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.record import DamagedError
from pi0rag_jax.worlds import journal
from pi0rag_jax.worlds.episode import Step

LOG_NAME = "episodes.jsonl"  # in the memory's folder
MAX_OPEN = 64  # episodes under way, each some kilobytes a decision; the one that was heard of least lately gives way
_LARGEST_LOG = 64 * 2**20  # bytes; a larger file is written anew without what is over


class _Line(msgspec.Struct, omit_defaults=True):
  """A line of the log: a decision, what came of it, or that an episode is over."""

  id: str
  at: int = 0
  tick: int = 0
  arrays: dict[str, journal.Array] = {}
  used: int = 0
  prompt: str = ""
  by: str = ""
  done: journal.Array | None = None
  task: str = ""
  robot: str = ""
  teacher: str = ""
  over: bool = False
  failure_kind: str = ""


@dataclasses.dataclass
class Open:
  """An episode under way."""

  id: str
  task: str = ""
  robot: str = ""
  teacher: str = ""
  prompt: str = ""
  failure_kind: str = ""  # once it is over
  steps: list[Step] = dataclasses.field(default_factory=list)

  def read(self, line: _Line) -> None:
    """Takes in a line of the log."""
    if line.arrays:
      arrays = {name: journal.unpacked(array) for name, array in line.arrays.items()}
      del self.steps[line.at :]
      self.task, self.robot, self.teacher, self.prompt = line.task, line.robot, line.teacher, line.prompt
      self.steps.append(Step(line.tick, None, arrays["key"], arrays["base"], arrays["actions"], line.used,
                             arrays["ids"], arrays["weight"]))
    elif line.done is not None and line.at < len(self.steps):
      self.steps[line.at] = dataclasses.replace(self.steps[line.at], by=line.by, done_NA=journal.unpacked(line.done))

  @property
  def ticks(self) -> int:
    """Executed so far; the last decision counts once it is told what came of it."""
    return 0 if not self.steps else self.steps[-1].tick + len(done(self.steps[-1]))


def logged(path: str | os.PathLike, name: str) -> Open:
  """Returns an episode that a log tells of: one under way, or one that is over whose lines are still there. It has no
  steps where the log knows nothing of it. Errors: DamagedError.
  """
  episode = Open(name)
  for line in _lines(path, of=name):
    if line.over:
      episode.failure_kind = line.failure_kind
    else:
      episode.read(line)
  return episode


def _lines(path: str | os.PathLike, *, of: str | None = None) -> Iterator[_Line]:
  """Yields the lines of a log; those `of` one episode without making anything of the others, which may be many."""
  start = b"{" if of is None else msgspec.json.encode({"id": of})[:-1]
  for number, line in enumerate(files.whole_lines(path), start=1):
    if not line.startswith((start + b",", start + b"}") if of is not None else start):
      continue
    try:
      yield schema.parse(line, _Line, f"{path}, line {number}")
    except Pi0RagError as error:
      raise DamagedError(f"{error}: delete the file, and what was under way is lost") from error


class EpisodeLog:
  """The episodes under way, on disk. Raises Pi0RagError when another process writes the file, or it is damaged."""

  def __init__(self, path: str | os.PathLike):
    self._log = files.LineLog(path)
    self.open: collections.OrderedDict[str, Open] = collections.OrderedDict()
    try:
      for line in _lines(path):
        if line.over:
          self.open.pop(line.id, None)
        else:
          self.open.setdefault(line.id, Open(line.id)).read(line)
    except DamagedError:
      self._log.close()
      raise

  def episode(self, name: str) -> Open:
    """Returns an episode, which begins with this where it is new."""
    if name not in self.open and len(self.open) >= MAX_OPEN:
      self.over(next(iter(self.open)))
    episode = self.open.setdefault(name, Open(name))
    self.open.move_to_end(name)
    return episode

  def decided(self, episode: Open, step: Step) -> None:
    """Adds a decision; those from its place on were never answered."""
    self._write(_Line(episode.id, len(episode.steps), step.tick, journal.arrays_of(step), step.used, episode.prompt,
                      task=episode.task, robot=episode.robot, teacher=episode.teacher))
    episode.steps.append(step)

  def came_of_it(self, episode: Open, by: str, done_NA: np.ndarray) -> None:
    """Says what was executed after the last decision, and by whom."""
    at = len(episode.steps) - 1
    self._write(_Line(episode.id, at, by=by, done=journal.packed(done_NA)))
    episode.steps[at] = dataclasses.replace(episode.steps[at], by=by, done_NA=done_NA)

  def over(self, name: str, failure_kind: str = "") -> None:
    """Closes an episode, which ended so or is given up."""
    if self.open.pop(name, None) is None:
      return
    self._write(_Line(name, over=True, failure_kind=failure_kind))
    if len(self._log) > _LARGEST_LOG:
      self._write_anew()

  def _write_anew(self) -> None:
    path, kept = self._log.path, list(self.open.values())
    self._log.close()
    files.write_text(path, "")
    self._log, self.open = files.LineLog(path), collections.OrderedDict()
    for old in kept:
      episode = self.episode(old.id)
      episode.task, episode.robot, episode.teacher, episode.prompt = old.task, old.robot, old.teacher, old.prompt
      for step in old.steps:
        self.decided(episode, dataclasses.replace(step, by=POLICY, done_NA=None))
        if step.done_NA is not None:
          self.came_of_it(episode, step.by, step.done_NA)

  @property
  def path(self) -> pathlib.Path:
    """The file."""
    return self._log.path

  def _write(self, line: _Line) -> None:
    self._log.append(msgspec.json.encode(line), durable=False)

  def close(self) -> None:
    """Releases the file to other processes."""
    self._log.close()


def origin(name: str, robot: str, teacher: str = "") -> dict[str, str]:
  """Returns what records of an episode say of where they come from."""
  named = {"robot": robot, **({"teacher": teacher} if teacher else {})}
  return {"episode": name, **named, "version": importlib.metadata.version("pi0rag-jax")}


def done(step: Step) -> np.ndarray:
  """Returns what was executed from a decision to the next one, float[n, A]; nothing where nobody said so."""
  return step.actions_TA[:0] if step.done_NA is None else step.done_NA
