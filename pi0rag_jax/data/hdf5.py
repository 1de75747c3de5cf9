"""What the readers of HDF5 formats share: open files, frames of a dataset, texts."""

import abc
import collections
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np

from pi0rag_jax.data.dataset import DamagedEpisode, Dataset, Fields
from pi0rag_jax.data.formats import hdf5_files
from pi0rag_jax.errors import Pi0RagError, unknown_name

OPEN_FILES = 32
CHANNELS = (1, 3)


class Hdf5Files:
  """The last few files stay open. One thread reads at a time, as within HDF5 itself."""

  def __init__(self, *, open_files: int = OPEN_FILES):
    self._open_files = open_files
    self._files: collections.OrderedDict[Path, h5py.File] = collections.OrderedDict()
    self._lock = threading.RLock()

  @contextlib.contextmanager
  def open(self, path: Path) -> Iterator[h5py.File]:
    """Gives the open file for the length of the block.

    Raises:
      OSError: no such file, or no whole HDF5 file.
    """
    with self._lock:
      file = self._files.pop(path, None) or h5py.File(path, "r")
      self._files[path] = file
      while len(self._files) > self._open_files:
        self._files.popitem(last=False)[1].close()
      yield file


class Hdf5Dataset(Dataset):
  """Data sets of one or more HDF5 files, each of one or more episodes."""

  def __init__(self, path, *, fields: Fields, skip_bad: bool):
    super().__init__(path, fields=fields, skip_bad=skip_bad)
    self._hdf5 = Hdf5Files()
    self._episodes: list[tuple[Path, str]] = []  # file, group within it
    lengths = []
    for file in hdf5_files(self.path):
      for group in self._try(f"'{file}'", lambda file=file: self._groups(file)) or []:
        what = f"'{group}' in '{file}'"
        length = self._try(what, lambda file=file, group=group: self._length(file, group))
        if length:
          self._episodes.append((file, group))
          lengths.append(length)
    self.lengths = np.asarray(lengths, np.int64)
    self.camera_keys = {}
    if not any(self._try(self.episode_name(episode), lambda episode=episode: self._inspected(episode))
               for episode in range(self.num_episodes)):
      raise Pi0RagError(f"no episode in '{self.path}' can be read: {'; '.join(list(self.damaged.values())[:3])}")

  def _try(self, what: str, read: Callable[[], Any]) -> Any:
    """Returns what `read` returns; None where it met damage that is skipped."""
    try:
      with self._damage(what):
        return read()
    except DamagedEpisode as error:
      self.count_damage(what, error)
      return None

  def _groups(self, path: Path) -> list[str]:
    with self._hdf5.open(path) as file:
      return self._episode_groups(file)

  def _length(self, path: Path, group: str) -> int:
    with self._hdf5.open(path) as file:
      if not (length := len(stored(file, f"{group}/{self.length_key}"))):
        raise ValueError("no frames")
      return length

  def _inspected(self, episode: int) -> bool:
    with self._group(episode) as group:
      self._inspect(group)
    return True

  # An array with one entry per frame, within an episode's group.
  length_key: ClassVar[str]

  @abc.abstractmethod
  def _episode_groups(self, file: h5py.File) -> list[str]:
    """Returns the groups of the episodes of a file."""

  @abc.abstractmethod
  def _inspect(self, group: Any) -> None:
    """Finds out the cameras, and the rate where files tell it, from an episode's group."""

  def episode_name(self, episode: int) -> str:
    file, group = self._episodes[episode]
    return f"episode {episode}{f' ({group})' if group != '/' else ''} in '{file}'"

  def place(self, episode: int) -> tuple[Path, str]:
    """Returns the file of an episode and its group there."""
    return self._episodes[self._checked(episode)]

  def files(self) -> list[Path]:
    return sorted({file for file, _ in self._episodes})

  @contextlib.contextmanager
  def _group(self, episode: int) -> Iterator[Any]:
    """Gives the episode's group for the length of the block."""
    path, name = self._episodes[episode]
    with self._hdf5.open(path) as file:
      yield file[name]


def stored(group: Any, name: str) -> Any:
  """Returns the dataset `name` in a group.

  Raises:
    KeyError: there is none.
  """
  item = group[name]
  if not isinstance(item, h5py.Dataset):
    raise KeyError(f"'{name}' is no array")
  return item


def read_rows(dataset: Any, indices: np.ndarray) -> np.ndarray:
  """Returns the rows at rising indices; a whole range is read as one block, which is much faster.

  Args:
    dataset: h5py.Dataset.
    indices: int[N], rising, without repetition.
  """
  if len(indices) and indices[-1] - indices[0] + 1 == len(indices):
    return dataset[int(indices[0]) : int(indices[-1]) + 1]
  return dataset[indices] if len(indices) else dataset[:0]


def as_pictures(frames: np.ndarray) -> np.ndarray:
  """Returns uint8[F, H, W, 3] of pictures with channels first or last, grey or in colour.

  Raises:
    ValueError: neither shape nor dtype is a picture's.
  """
  if frames.ndim == 4 and frames.shape[-1] not in CHANNELS and frames.shape[1] in CHANNELS:
    frames = np.moveaxis(frames, 1, -1)
  if frames.ndim != 4 or frames.shape[-1] not in CHANNELS or frames.dtype != np.uint8:
    raise ValueError(f"pictures are uint8[F, H, W, 3], stored is {frames.dtype}{list(frames.shape)}")
  return np.ascontiguousarray(np.broadcast_to(frames, (*frames.shape[:-1], 3)))


def numeric_arrays(group: Any, *, frames: int, prefix: str = "") -> dict[str, np.ndarray]:
  """Returns the arrays of numbers with one entry per frame, by their path below `group`; no pictures."""
  found = {}
  for name in group.keys():  # noqa: SIM118
    item = group[name]
    if isinstance(item, h5py.Group):
      found |= numeric_arrays(item, frames=frames, prefix=f"{prefix}{name}/")
    elif item.dtype.kind in "fiub" and item.shape[:1] == (frames,) and not is_picture(item):
      found[f"{prefix}{name}"] = item[()]
  return found


def is_picture(item: Any) -> bool:
  """Returns whether a dataset holds pictures, or rows of compressed bytes."""
  return (item.dtype == np.uint8 and item.ndim >= 2) or h5py.check_vlen_dtype(item.dtype) is not None


def text_of(group: Any, name: str) -> str:
  """Returns a chosen text of an episode: an attribute or a scalar dataset of its group.

  Raises:
    Pi0RagError: there is none of that name.
  """
  if name not in group.attrs and name not in group:
    raise unknown_name("field for the prompt", name, [*group.attrs, *group])
  return as_text(group.attrs[name] if name in group.attrs else group[name])


def as_text(value: Any) -> str:
  """Returns an attribute or a scalar dataset as text."""
  if isinstance(value, h5py.Dataset):
    value = value[()]
  if isinstance(value, np.ndarray):
    value = value.reshape(-1)[0] if value.size else ""
  return value.decode("utf8") if isinstance(value, bytes) else str(value)
