"""Taught episodes with what was seen: kept while they run, and read again for new weights.

What was seen lies in `<folder>/.under_way`, a file for each episode, from its first decision on. Once an episode has
ended, that file is on disk; it then becomes one of `EpisodeWriter`'s, in the folder itself, on a thread of its own. A
frame is a control tick. Pictures and state are those of the last decision, when the policy last looked; the metadata's
`decisions` say when that was, who acted from then on, and which records had a say.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import logging
import os
import pathlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py
import jax
import msgspec
import numpy as np

from pi0rag_jax import files, schema
from pi0rag_jax.data.checks import mapping
from pi0rag_jax.data.dataset import Dataset, EpisodeData
from pi0rag_jax.data.episodes import SUFFIX
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.data.hdf5 import json_of
from pi0rag_jax.data.recorder import EpisodeWriter
from pi0rag_jax.data.validation import Schema
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy.policy import Policy, padded_size
from pi0rag_jax.robots import images
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering import paths
from pi0rag_jax.worlds import journal
from pi0rag_jax.worlds.episode import Step

UNDER_WAY = ".under_way"
MAX_OPEN = 64  # the one that was heard of least lately gives way
NO_PROMPT = "(none)"
LEAST_SAY = 0.001  # below it a record is not named
STATE = "state"

_log = logging.getLogger(__name__)


class Decision(msgspec.Struct, forbid_unknown_fields=True):
  """What is kept of a decision beside what was seen."""

  tick: int
  by: str
  used: int  # records that had a say
  apart: float  # mean path cost of the answer against the policy's own chunk
  records: list[tuple[int, float]]  # ids of those with the most say and how much, the most first


class Facts(msgspec.Struct, forbid_unknown_fields=True):
  """What is kept of an episode beside its frames."""

  episode: str
  robot: str
  task: str
  ended: float  # s since 1970
  columns: dict[str, Any]  # the robot's keys -> names of cameras, or parts of the state
  decisions: list[Decision]
  constants: dict[str, Any] = {}  # further entries of the robot's dictionary, such as which cameras are there
  robot_type: str = ""
  renderer: str = ""  # of a simulation


@dataclasses.dataclass(frozen=True)
class Ending:
  """How an episode ended, and of what it was one."""

  task: str
  robot: str
  prompt: str
  success: bool
  failure_kind: str = ""
  note: str = ""


class _Line(msgspec.Struct, omit_defaults=True):
  """A line of a file under way: what was seen at a decision, or how it all ended."""

  id: str
  at: int = 0
  images: dict[str, journal.Array] = {}
  state: journal.Array | None = None
  columns: dict[str, Any] = {}
  constants: dict[str, Any] = {}
  ending: Ending | None = None
  decisions: list[Decision] = []
  done: list[journal.Array] = []  # what was executed from each decision on
  ended: float = 0.0


class Keeper:
  """Keeps what the policy saw in the episodes that teach it. Threads may call everything at once, but for what they
  say of one episode; files are written by another.
  """

  def __init__(self, folder: str | os.PathLike, policy: Policy, *, under_way: Sequence[str] = ()):
    """Makes the folder, and finishes what a process that was killed had not.

    Args:
      policy: whose episodes these are.
      under_way: the episodes that may go on; what else lies there unfinished is given up.
    Errors: Pi0RagError for a folder that cannot be used.
    """
    self.folder, self._policy = pathlib.Path(folder).expanduser(), policy
    self._fps = policy.spec.control_hz
    self._open: collections.OrderedDict[str, files.LineLog] = collections.OrderedDict()
    self._opening = threading.Lock()
    self._ended: set[str] = set()
    self._writing = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="keeper")
    try:
      (self.folder / UNDER_WAY).mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise Pi0RagError(f"'{self.folder}' cannot be used for episodes: {error}") from error
    for path in sorted((self.folder / UNDER_WAY).glob("*.jsonl")):
      lines = _lines(path)
      if lines and lines[-1].ending is not None:
        if lines[0].id not in (facts.episode for facts, _ in _facts(self.folder)):
          self._submit(lines[0].id, path)
        else:  # it was killed after writing
          path.unlink()
      elif not lines or lines[0].id not in under_way:
        path.unlink()

  def saw(self, episode: str, at: int, observation: Mapping[str, Any]) -> None:
    """Keeps what the policy saw at an episode's decision number `at`; later ones were never answered."""
    columns, pictures, state_P, constants = split(observation)
    line = _Line(episode, at, {name: journal.packed(picture) for name, picture in pictures.items()},
                 journal.packed(state_P), columns, constants)
    self._file(episode).append(msgspec.json.encode(line), durable=False)

  def ended(self, episode: str, ending: Ending, steps: Sequence[Step]) -> None:
    """Returns once all of an episode is on disk; its file in the folder follows. A second call does nothing."""
    path = self._path(episode)
    if episode in self._ended or not path.exists():
      return
    done = [journal.packed(step.actions_TA[:0] if step.done_NA is None else step.done_NA) for step in steps]
    decisions = [decision_of(step, self._policy.space) for step in steps]
    line = _Line(episode, ending=ending, decisions=decisions, done=done, ended=time.time())
    self._file(episode).append(msgspec.json.encode(line))
    self._submit(episode, path)

  def forget(self, episode: str) -> None:
    """Removes an episode, as if it had never been kept."""
    self._writing.submit(self._remove, episode).result()  # after it was written, if it ended
    with self._opening:
      self._give_up(episode)
      self._ended.discard(episode)

  def close(self) -> None:
    """Returns once everything that ended is in the folder."""
    self._writing.shutdown()
    while self._open:
      self._open.popitem()[1].close()

  def _file(self, episode: str) -> files.LineLog:
    with self._opening:
      if episode not in self._open:
        if len(self._open) >= MAX_OPEN:
          self._give_up(next(iter(self._open)))
        self._open[episode] = files.LineLog(self._path(episode))
      self._open.move_to_end(episode)
      return self._open[episode]

  def _submit(self, episode: str, path: pathlib.Path) -> None:
    with self._opening:
      if episode in self._open:
        self._open.pop(episode).close()
      self._ended.add(episode)
    self._writing.submit(self._write, path)

  def _give_up(self, episode: str) -> None:
    if episode in self._open:
      self._open.pop(episode).close()
    self._path(episode).unlink(missing_ok=True)

  def _path(self, episode: str) -> pathlib.Path:
    return self.folder / UNDER_WAY / f"{hashlib.sha256(episode.encode()).hexdigest()[:24]}.jsonl"

  def _write(self, path: pathlib.Path) -> None:
    """Makes an episode's file of what was kept of it; what cannot be made stays where it is, and is told."""
    try:
      self._write_episode(_lines(path))
    except (Pi0RagError, OSError) as error:
      _log.warning("an episode is not kept (%s stays): %s", path, error)
    else:
      path.unlink()

  def _write_episode(self, lines: Sequence[_Line]) -> None:
    *seen, last = lines
    assert last.ending is not None, "only episodes that ended are written"
    looks = {line.at: line for line in seen}  # the last of each is the one that was answered
    if missing := set(range(len(last.decisions))) - looks.keys():
      raise Pi0RagError(f"what was seen at {len(missing)} of its {len(last.decisions)} decisions was not kept")
    begin, ending = seen[0], last.ending
    decisions = [(looks[at], decision, journal.unpacked(done_NA))
                 for at, (decision, done_NA) in enumerate(zip(last.decisions, last.done)) if done_NA.shape[0]]
    if not decisions:
      return
    cameras = {name: (array.shape[0], array.shape[1]) for name, array in begin.images.items()}
    state_dim, action_dim = _state(begin).size, decisions[0][2].shape[1]
    writer = EpisodeWriter(self.folder, Schema(cameras, state_dim, action_dim, self._fps))
    for look, decision, done_NA in decisions:
      pictures = {name: journal.unpacked(array) for name, array in look.images.items()}
      for offset, action_A in enumerate(done_NA):
        writer.add_frame(images=pictures, state=_state(look), action=action_A, by=decision.by,
                         time_s=(decision.tick + offset) / self._fps)
    facts = Facts(last.id, ending.robot, ending.task, last.ended, begin.columns,
                  [decision for _, decision, _ in decisions], begin.constants, self._policy.robot.name,
                  self._policy.spec.renderer)
    writer.save(prompt=ending.prompt.strip() or ending.task.strip() or NO_PROMPT, success=ending.success,
                failure=None if ending.success else ending.failure_kind or None, note=ending.note or None,
                metadata=msgspec.to_builtins(facts))

  def _remove(self, episode: str) -> None:
    for facts, path in _facts(self.folder):
      if facts.episode == episode:
        path.unlink()
        files.sync(self.folder)


def decision_of(step: Step, space: ActionSpace | None) -> Decision:
  """Returns what there is to say of a decision; without an action space not how far it is from the policy's own."""
  order = np.argsort(-step.weight_K, kind="stable")
  named = [(int(step.ids_K[place]), round(float(step.weight_K[place]), 4)) for place in order
           if step.ids_K[place] >= 0 and step.weight_K[place] >= LEAST_SAY]
  apart = 0.0
  if space is not None:
    difference_TA = paths.to_path(step.actions_TA.astype(np.float32) - step.base_TA, space)
    apart = float(paths.disagreement(difference_TA, space))
  return Decision(step.tick, step.by, step.used, round(apart, 4), named)


@dataclasses.dataclass(frozen=True)
class KeptEpisode:
  """An episode as it is read again."""

  facts: Facts
  data: EpisodeData
  dataset: Dataset
  number: int

  @property
  def success(self) -> bool:
    return bool(self.data.metadata.get("success", False))

  def observations(self, ticks: Sequence[int]) -> list[dict]:
    """Returns the robot's dictionaries at decisions, by the control ticks at which they were made."""
    frames = [self.frame(tick) for tick in ticks]
    pictures = self.dataset.read_frames(self.number, frames)
    return [joined(self.facts, {name: array[row] for name, array in pictures.items()}, self.data.state[frame],
                   self.data.prompts[int(frame)]) for row, frame in enumerate(frames)]

  def frame(self, tick: int) -> int:
    """Returns the number of the frame of a control tick."""
    return int(np.searchsorted(self.ticks(), tick))

  def ticks(self) -> np.ndarray:
    """Returns the control tick of each frame, int[F]."""
    return np.round(self.data.timestamps * self.dataset.episode_fps(self.number)).astype(int)


def read(folder: str | os.PathLike) -> Iterator[KeptEpisode]:
  """Yields the episodes of a folder that a server kept. Errors: Pi0RagError for a folder of anything else."""
  dataset = open_dataset(pathlib.Path(folder))
  for number, data in dataset.iterate():
    yield as_kept(dataset, number, data)


def as_kept(dataset: Dataset, number: int, data: EpisodeData) -> KeptEpisode:
  """Returns an episode of a folder. Errors: Pi0RagError for one that no server kept."""
  return KeptEpisode(_facts_of(data.metadata, dataset.episode_name(number)), data, dataset, number)


def asked_again(policy: Policy, episode: KeptEpisode, ticks: Sequence[int], *, batch: int
                ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
  """Yields (tick, key [E], the policy's own chunk [T, A]) of decisions, by their control ticks in rising order.

  A policy that remembers is shown all that it saw until then, and more decisions come of it than were asked for.

  Args:
    batch: decisions at a time, a power of two: each size is compiled once.
  """
  remembers = bool(jax.tree.leaves(policy.start(1)))
  decided = [decision.tick for decision in episode.facts.decisions]
  carry = policy.start(padded_size(1)) if remembers else ()
  asked = decided[: decided.index(ticks[-1]) + 1] if remembers else list(ticks)
  size = 1 if remembers else batch
  for part in (asked[first : first + size] for first in range(0, len(asked), size)):
    filled = [*part, *part[-1:] * (size - len(part))]
    carry, encoded = policy.encode(carry, policy.prepare(episode.observations(filled)))
    base_BTA, key_BE = np.asarray(policy.decode(encoded)), np.asarray(encoded.key_BE)
    yield from ((tick, key_BE[row], base_BTA[row]) for row, tick in enumerate(part))


def split(observation: Mapping[str, Any]) -> tuple[dict, dict[str, np.ndarray], np.ndarray, dict]:
  """Returns (columns, pictures uint8[H, W, 3] by camera, state float32[P], constants) of a robot's dictionary.

  `columns` has the dictionary's keys; its leaves are the names of cameras, and "state[first:end]". A camera is called
  as the last part of its key. Constants are what is neither a picture, nor numbers, nor the prompt.
  """
  pictures: dict[str, np.ndarray] = {}
  numbers: list[np.ndarray] = []
  columns, constants = _split(observation, pictures, numbers)
  if not numbers:
    raise Pi0RagError("the observation has no numbers: there is no state to keep")
  return columns, pictures, np.concatenate(numbers).astype(np.float32), constants


def _split(node: Mapping[str, Any], pictures: dict, numbers: list) -> tuple[dict, dict]:
  columns, constants = {}, {}
  for key, value in node.items():
    if isinstance(value, Mapping):
      inner = _split(value, pictures, numbers)
      columns |= {key: inner[0]} if inner[0] else {}
      constants |= {key: inner[1]} if inner[1] else {}
      continue
    array = np.asarray(value)
    if array.ndim == 3:
      name = key.rpartition("/")[2]
      name = name if name not in pictures else key.replace("/", ".")
      pictures[name], columns[key] = images.parse_image(array, key), name
    elif array.dtype.kind in "fiu":
      first = sum(map(len, numbers))
      numbers.append(np.atleast_1d(array).ravel())
      columns[key] = f"{STATE}[{first}:{first + len(numbers[-1])}]"
    elif key != "prompt":
      constants[key] = array.tolist()
  return columns, constants


def joined(facts: Facts, pictures: Mapping[str, np.ndarray], state_P: np.ndarray, prompt: str) -> dict:
  """Returns the robot's dictionary of which `split` made the parts."""
  found = _joined(facts.columns, facts.constants, pictures, state_P)
  return found if prompt == NO_PROMPT else {**found, "prompt": prompt}


def _joined(columns: Mapping, constants: Mapping, pictures: Mapping[str, np.ndarray], state_P: np.ndarray) -> dict:
  found = dict(constants)
  for key, column in columns.items():
    if isinstance(column, Mapping):
      found[key] = _joined(column, constants.get(key, {}), pictures, state_P)
    elif column in pictures:
      found[key] = pictures[column]
    else:
      first, _, end = column.removeprefix(f"{STATE}[").removesuffix("]").partition(":")
      found[key] = state_P[int(first) : int(end)]
  return found


def _facts(folder: pathlib.Path) -> Iterator[tuple[Facts, pathlib.Path]]:
  """Yields what is kept beside the frames, and the file."""
  for path in sorted(folder.glob(f"*{SUFFIX}")):
    with h5py.File(path, "r") as file:
      metadata = [json_of(group.attrs, "metadata") for group in file.values()]
    yield _facts_of(metadata[0], str(path)), path


def _facts_of(metadata: Mapping[str, Any], name: str) -> Facts:
  where = f"{name} was not kept by a server that learns"
  return schema.convert({field: value for field, value in mapping(metadata, where).items()
                         if field in Facts.__struct_fields__}, Facts, where)


def _lines(path: pathlib.Path) -> list[_Line]:
  return [schema.parse(line, _Line, f"{path}, line {number}")
          for number, line in enumerate(files.whole_lines(path), start=1)]


def _state(line: _Line) -> np.ndarray:
  assert line.state is not None, "what was seen has a state"
  return journal.unpacked(line.state)
