"""One interface to recorded episodes of every format: `open_dataset(path)` finds out which one lies there.

A data set is a row of episodes, an episode a row of frames. Numbers keep the dtype of the file; pictures are
uint8[F, H, W, 3] in RGB. What cannot be read raises `DamagedEpisode`, which names file and episode.
"""

import abc
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pi0rag_jax.data import samples
from pi0rag_jax.errors import Pi0RagError, unknown_name


class DamagedEpisode(Pi0RagError):
  """Something stored cannot be read; `skip_bad` leaves it out and counts it."""


@dataclasses.dataclass(frozen=True)
class Fields:
  """Which stored field is what; None is the format's own default."""

  state: str | Sequence[str] | None = None  # several are put side by side
  actions: str | Sequence[str] | None = None
  prompt: str | None = None  # the field that holds the text, or numbers of tasks where there is a list of them
  cameras: Sequence[str] | Mapping[str, str] | None = None  # stored names, or our name -> stored name; None: all
  default_prompt: str | None = None  # where the data set holds no text, or an empty one
  fps: float | None = None  # frames per second, where the data set does not say


DEFAULT_FIELDS = Fields()


@dataclasses.dataclass(frozen=True)
class EpisodeData:
  """One episode of F frames as it is stored; actions in the robot's units."""

  state: np.ndarray  # [F, P]
  actions: np.ndarray  # [F, A], or [F, T, A] where whole chunks are stored
  prompts: Sequence[str]  # F texts, '' where nothing says one: the task can change within an episode
  timestamps: np.ndarray  # float64[F], s
  # What else is stored per frame, [F, ...]; numbers, and texts such as who acted.
  extras: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the whole episode
  images: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # camera -> uint8[F, H, W, 3]

  def __len__(self) -> int:
    return len(self.state)


class Arrays(dict[str, np.ndarray]):
  """The arrays of an episode by name; `unread` says of others why not, and raises only where one is asked for."""

  def __init__(self):
    super().__init__()
    self.unread: dict[str, str] = {}

  def add(self, name: str, read: Callable[[], np.ndarray]) -> None:
    """Adds what `read` returns, or notes why it cannot be read."""
    try:
      self[name] = read()
    except Exception as error:
      self.unread[name] = reason(error)

  def alias(self, prefix: str) -> None:
    """Lets what is stored below a group be asked for without it."""
    for name in [name for name in self if name.startswith(prefix)]:
      self.setdefault(name.removeprefix(prefix), self[name])
    for name in [name for name in self.unread if name.startswith(prefix)]:
      self.unread.setdefault(name.removeprefix(prefix), self.unread[name])

  def joined(self, names: str | Sequence[str], *, what: str) -> np.ndarray:
    """Returns the named arrays joined in their last dimension; those of one number per frame become one column.

    Args:
      names: one or more, of shapes [F] or [F, n] (or [F, T, n]).
      what: `state` or `actions`, for the message.
    Raises:
      Pi0RagError: there is none of a name.
      ValueError: one cannot be read.
    """
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
      if name in self.unread:
        raise ValueError(f"'{name}', of the {what}: {self.unread[name]}")
      if name not in self:
        is_group = any(known.startswith(f"{name}/") for known in self)
        hint = f"; '{name}' is a group: give Fields({what}=...) its parts in their order" if is_group else ""
        raise Pi0RagError(f"{unknown_name(f'field for the {what}', name, self)}{hint}")
    columns = [self[name] if self[name].ndim > 1 else self[name][:, None] for name in names]
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=-1)


class Dataset(abc.ABC):
  """Episodes 0 to num_episodes - 1. Reading is safe from several threads."""

  format: ClassVar[str]
  options: ClassVar[tuple[str, ...]] = ()  # what `open_dataset` takes for this format beside `fields`

  path: Path
  fps: float  # of the first file, where files differ: see `episode_fps`
  says_fps: bool = True  # else `fps` is what is usual
  lengths: np.ndarray  # int64[num_episodes]
  camera_keys: dict[str, str]  # our name -> stored name

  def __init__(self, path: str | Path, *, fields: Fields, skip_bad: bool):
    self.path, self.fields, self.skip_bad = expanded(path), fields, skip_bad
    if fields.fps is not None and not (math.isfinite(fields.fps) and fields.fps > 0):
      raise Pi0RagError(f"Fields(fps=...) is {fields.fps}, allowed: finite numbers above 0")
    self.damaged: dict[str, str] = {}  # what could not be read -> why

  @property
  def folder(self) -> Path:
    """Where the files are: the path, or what holds it where it is a file."""
    return self.path if self.path.is_dir() else self.path.parent

  @property
  def num_episodes(self) -> int:
    return len(self.lengths)

  @property
  def num_frames(self) -> int:
    return int(self.lengths.sum())

  @property
  def cameras(self) -> tuple[str, ...]:
    return tuple(self.camera_keys)

  @property
  def state_dim(self) -> int:
    return self._example.state.shape[-1]

  @property
  def action_dim(self) -> int:
    return self._example.actions.shape[-1]

  def episode_length(self, episode: int) -> int:
    return int(self.lengths[self._checked(episode)])

  def episode_fps(self, episode: int) -> float:
    """Returns frames per second of one episode, as its file says."""
    self._checked(episode)
    return self.fps

  def read_episode(self, episode: int, *, images: bool = True) -> EpisodeData:
    """Returns one episode, with all frames of all cameras where `images`.

    Raises:
      DamagedEpisode: it cannot be read.
    """
    episode = self._checked(episode)
    with self._damage(self.episode_name(episode)):
      data = self._read_arrays(episode)
      sizes = {"state": len(data.state), "actions": len(data.actions), "prompts": len(data.prompts)}
      if set(sizes.values()) != {int(self.lengths[episode])}:
        raise ValueError(f"{int(self.lengths[episode])} frames are announced, stored are {sizes}")
      for name in ("state", "actions"):
        if not getattr(data, name).shape[-1]:
          raise ValueError(f"{name} with no entries, allowed: 1 or more")
    if images:
      frames = self.read_frames(episode, np.arange(len(data)))
      data = dataclasses.replace(data, images=frames)
    return data

  def read_frames(
    self, episode: int, indices: Sequence[int] | np.ndarray, cameras: Sequence[str] | None = None
  ) -> dict[str, np.ndarray]:
    """Returns {camera: uint8[N, H, W, 3]}, the frames at `indices`, in any order and repeated as asked for.

    Args:
      episode: its number.
      indices: int[N], of frames within the episode.
      cameras: our names; None is all.
    Raises:
      DamagedEpisode: a frame cannot be read.
    """
    episode, indices = self._checked(episode), np.asarray(indices, np.int64).reshape(-1)
    length = int(self.lengths[episode])
    if indices.size and not (indices.min() >= 0 and indices.max() < length):
      raise Pi0RagError(f"{self.episode_name(episode)} has frames 0 to {length - 1}, asked for {indices.tolist()}")
    wanted, places = np.unique(indices, return_inverse=True)
    frames = {}
    for camera in self.cameras if cameras is None else cameras:
      if camera not in self.camera_keys:
        raise unknown_name("camera", camera, self.camera_keys)
      with self._damage(f"camera '{camera}' of {self.episode_name(episode)}"):
        frames[camera] = self._read_camera(episode, self.camera_keys[camera], wanted)[places]
    return frames

  def read_samples(
    self, episodes: np.ndarray, frames: np.ndarray, *, horizon: int, cameras: Sequence[str] | None = None
  ) -> dict[str, Any]:
    """Returns N samples: `image` {camera: uint8[N, H, W, 3]}, `state` float32[N, P], `actions` float32[N, T, A],
    `actions_is_pad` bool[N, T] and `prompt`, a list of N texts.

    Args:
      episodes, frames: int[N].
      horizon: T.
      cameras: our names; None is all.
    """
    parts, slots = [], []
    for episode in np.unique(episodes).tolist():
      here = np.flatnonzero(episodes == episode)
      data = self.read_episode(episode, images=False)
      images = self.read_frames(episode, frames[here], cameras)
      parts.append(samples.from_episode(data, images, frames[here], horizon))
      slots.append(here)
    return samples.interleave(parts, slots)

  def iterate(self, *, images: bool = False) -> Iterator[tuple[int, EpisodeData]]:
    """Yields (number, episode); damaged ones are left out and counted where `skip_bad`, else they raise."""
    for episode in range(self.num_episodes):
      try:
        data = self.read_episode(episode, images=images)
      except DamagedEpisode as error:
        self.count_damage(self.episode_name(episode), error)
        continue
      yield episode, data

  def count_damage(self, what: str, error: DamagedEpisode) -> None:
    """Notes what is left out; raises the error where damage is not to be skipped."""
    if not self.skip_bad:
      raise error
    self.damaged[what] = str(error)

  @abc.abstractmethod
  def episode_name(self, episode: int) -> str:
    """Returns the episode's name for messages, with its file."""

  @abc.abstractmethod
  def files(self) -> list[Path]:
    """Returns every file that the contents depend on."""

  def fingerprint(self) -> str:
    """Returns a hash of the files' names, sizes and times, and of the fields that were chosen."""
    digest = hashlib.sha256(f"{self.format} {self.fields} {self.lengths.tolist()}".encode())
    for file in sorted(self.files()):
      stat = file.stat() if file.exists() else None
      seen = (stat.st_size, stat.st_mtime_ns) if stat else None
      digest.update(f"{file.relative_to(self.folder)} {seen}\n".encode())
    return digest.hexdigest()

  @abc.abstractmethod
  def _read_arrays(self, episode: int) -> EpisodeData:
    """Returns the episode without pictures."""

  @abc.abstractmethod
  def _read_camera(self, episode: int, key: str, indices: np.ndarray) -> np.ndarray:
    """Returns uint8[N, H, W, 3] for indices that rise, under the stored name of the camera."""

  @functools.cached_property
  def _example(self) -> EpisodeData:
    """Returns the first episode that can be read."""
    for _, data in self.iterate():
      return data
    raise Pi0RagError(f"no episode in '{self.path}' can be read: {'; '.join(list(self.damaged.values())[:3])}")

  def _checked(self, episode: int) -> int:
    if not 0 <= episode < self.num_episodes:
      raise Pi0RagError(f"'{self.path}' has episodes 0 to {self.num_episodes - 1}, asked for {episode}")
    return int(episode)

  @contextlib.contextmanager
  def _damage(self, what: str) -> Iterator[None]:
    """Turns whatever decoders raise on broken contents into DamagedEpisode; their errors have no common base."""
    try:
      yield
    except Pi0RagError:
      raise
    except Exception as error:
      raise DamagedEpisode(f"{what} cannot be read: {reason(error)}") from error


def expanded(path: str | Path) -> Path:
  """Returns the path with the home folder in the place of '~'."""
  return Path(os.path.expanduser(path))


def prompt_or_default(text: str | None, default: str | None) -> str:
  """Returns the text that is stored, else the default, else ''."""
  return text if text and text.strip() else default or ""


def choose_cameras(
  stored: Mapping[str, str], chosen: Sequence[str] | Mapping[str, str] | None
) -> dict[str, str]:
  """Returns our name -> stored name for the cameras that are chosen.

  Args:
    stored: name -> why its pictures are no RGB, '' where they are.
    chosen: see Fields; None takes all that are RGB.
  Raises:
    Pi0RagError: a chosen one is not stored, or no RGB.
  """
  usable = [name for name, why_not in stored.items() if not why_not]
  if chosen is None:
    return {name: name for name in usable}
  pairs = dict(chosen) if isinstance(chosen, Mapping) else {name: name for name in chosen}
  for key in pairs.values():
    if key not in stored:
      raise unknown_name("camera", key, usable)
    if stored[key]:
      raise Pi0RagError(f"'{key}' is no RGB camera: {stored[key]}. Cameras: {', '.join(usable) or 'none'}")
  return pairs


def import_extra(module: str, purpose: str, extra: str = "data") -> Any:
  """Returns a module of one of the package's extras.

  Raises:
    Pi0RagError: it is not installed.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise Pi0RagError(f"{purpose} needs the package '{error.name}': install the extra {extra}, "
                      f"pip install 'pi0rag-jax[{extra}]'") from error


def reason(error: BaseException) -> str:
  """Returns what was raised in one line, cut; the type is told where the text does not speak for itself."""
  text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
  text = " ".join(text.split())[:300]
  return text if text and isinstance(error, ValueError | KeyError) else f"{type(error).__name__}: {text or 'no reason'}"
