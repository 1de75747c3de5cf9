"""What the readers of HDF5 formats share: open files, frames of a dataset, texts."""

import abc
import collections
import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np

from pi0rag_jax import lfs
from pi0rag_jax.data import checks, pictures
from pi0rag_jax.data.dataset import Arrays, DamagedEpisode, Dataset, Fields, choose_cameras, reason
from pi0rag_jax.data.formats import hdf5_files
from pi0rag_jax.errors import Pi0RagError, unknown_name

OPEN_FILES = 32
# Deflate makes a byte of 1,032 at most; other filters stay below twice that, for anything that sensors give.
MAX_EXPANSION, FREE_BYTES = 2000, 2**20


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
      file = self._files.pop(path, None) or self._opened(path)
      self._files[path] = file
      while len(self._files) > self._open_files:
        self._files.popitem(last=False)[1].close()
      yield file

  @staticmethod
  def _opened(path: Path) -> h5py.File:
    try:
      return h5py.File(path, "r")
    except OSError as error:
      raise OSError(lfs.reason(path, error)) from error


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a file says about its episodes."""

  cameras: Mapping[str, str]  # stored name -> why its pictures are no RGB, '' where they are
  fps: float | None = None  # frames per second
  prompt: str = ""


class Hdf5Dataset(Dataset):
  """Data sets of one or more HDF5 files, each of one or more episodes.

  What a file says holds for its own episodes; every camera of any file is wanted of all episodes.
  """

  default_fps: ClassVar[float]
  # An array, or a group of arrays, with one entry per frame, within an episode's group.
  length_key: ClassVar[str]
  # Whether every episode of a file says for itself what others' files say once.
  facts_per_episode: ClassVar[bool] = False

  def __init__(self, path, *, fields: Fields, skip_bad: bool):
    super().__init__(path, fields=fields, skip_bad=skip_bad)
    self._hdf5 = Hdf5Files()
    self._episodes: list[tuple[Path, str]] = []  # file, group within it
    self._facts: list[Facts | None] = []
    lengths = []
    for file in hdf5_files(self.path):
      facts = None
      for group in self._try(f"'{file}'", lambda file=file: self._groups(file)) or []:
        what = f"{group_name(group)} in '{file}'"
        length = self._try(what, lambda file=file, group=group: self._length(file, group))
        if not length:
          continue
        self._episodes.append((file, group))
        if facts is None or self.facts_per_episode:
          facts = self._try(what, lambda file=file, group=group: self._inspected(file, group))
        self._facts.append(facts)
        lengths.append(length)
    self.lengths = np.asarray(lengths, np.int64)
    known = [facts for facts in self._facts if facts is not None]
    if not known:
      raise Pi0RagError(f"no episode in '{self.path}' can be read: {'; '.join(list(self.damaged.values())[:3])}")
    self.says_fps = fields.fps is not None or all(facts.fps for facts in known)
    self.fps = float(fields.fps or known[0].fps or self.default_fps)
    cameras: dict[str, str] = {}
    for facts in known:
      cameras |= {name: why for name, why in facts.cameras.items() if not (why and name in cameras)}
    self.camera_keys = choose_cameras(cameras, fields.cameras)

  def episode_fps(self, episode: int) -> float:
    facts = self._facts[self._checked(episode)]
    return float(self.fields.fps or (facts and facts.fps) or self.default_fps)

  def _file_prompt(self, episode: int) -> str:
    """Returns the text that the episode's file says, or ''."""
    facts = self._facts[episode]
    return facts.prompt if facts else ""

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
      item = member(file, f"{group}/{self.length_key}")
      while isinstance(item, h5py.Group):
        if not len(item):
          raise ValueError(f"'{item.name}' is an empty group")
        item = member(item, next(iter(item.keys())))
      length = len(checked(item)) if item.shape else 0
    if not 0 < length <= checks.MAX_FRAMES:
      raise ValueError(f"{length} frames, allowed: 1 to {checks.MAX_FRAMES}")
    return length

  def _inspected(self, path: Path, group: str) -> Facts:
    try:
      with self._hdf5.open(path) as file:
        return self._inspect(file[group])
    except Pi0RagError as error:  # of a value that the file says: damage of this file alone
      raise ValueError(str(error)) from error

  @abc.abstractmethod
  def _episode_groups(self, file: h5py.File) -> list[str]:
    """Returns the groups of the episodes of a file."""

  @abc.abstractmethod
  def _inspect(self, group: Any) -> Facts:
    """Returns what the file of an episode's group says."""

  def _same_numbers(self, one: Path, other: Path, group: str) -> bool:
    """Returns whether an episode of two files is the same: its actions, or anything that was observed.

    Rows of equal numbers do not tell, and neither does one number per row, which may be the time.
    """
    found = []
    for path in (one, other):
      with self._hdf5.open(path) as file:
        arrays = numeric_arrays(file[group], frames=len(stored(file[group], self.length_key)))
        found.append({name: a for name, a in arrays.items() if a.ndim == 2 and a.shape[1] > 1 and (a != a[:1]).any()})
    return any(np.array_equal(found[0][name], found[1][name]) for name in found[0].keys() & found[1].keys())

  def _versions(self, one: Path, other: Path) -> Pi0RagError:
    """Returns the error for two files of the same episodes: actions of both would be mixed."""
    return Pi0RagError(f"'{self.path}' holds versions of the same demonstrations, '{one}' and '{other}': give the path "
                       "of the one that is meant")

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


def group_name(group: str) -> str:
  """Returns an episode's group for messages."""
  return "the episode" if group == "/" else f"'{group}'"


def member(group: Any, name: str) -> Any:
  """Returns what is stored under a name; says what there is where it is missing."""
  if name not in group:
    raise ValueError(f"'{name}' is not there; there are {', '.join(sorted(group.keys())) or 'none'}")
  return group[name]


def stored(group: Any, name: str) -> Any:
  """Returns the dataset `name` in a group.

  Raises:
    ValueError: there is none, or a group instead, or it announces far more than the file holds.
  """
  item = member(group, name)
  if isinstance(item, h5py.Group):
    raise ValueError(f"'{name}' is a group (of {', '.join(sorted(item.keys()))}), an array is expected")
  return checked(item)


def checked(item: Any) -> Any:
  """Returns a dataset whose announced size its stored bytes can make; reading another would only fill memory."""
  # Small ones are not asked: HDF5 counts an array's chunks one by one.
  if item.nbytes > FREE_BYTES and item.nbytes > MAX_EXPANSION * item.id.get_storage_size() + FREE_BYTES:
    raise ValueError(f"'{item.name}' announces {item.nbytes} bytes, stored are {item.id.get_storage_size()}")
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


def read_pictures(group: Any, name: str, indices: np.ndarray) -> np.ndarray:
  """Returns uint8[N, H, W, 3] of a camera, stored plainly or as rows of encoded bytes, at rising indices."""
  item = stored(group, name)
  if indices.size and indices[-1] >= len(item):
    raise ValueError(f"'{name}' has {len(item)} pictures, frame {indices[-1]} is asked for")
  if item.ndim > 2:
    pictures.check_size(*([size for size in item.shape[1:] if size not in pictures.CHANNELS] + [1, 1])[:2])
  rows = read_rows(item, indices)
  if not is_encoded(item):
    return pictures.as_rgb(rows)
  # A decoder stops before the zeros that pad a row; of texts numpy has cut them already.
  return pictures.stack([pictures.decode(_row_bytes(row)) for row in rows], indices.tolist())


def is_encoded(item: Any) -> bool:
  """Returns whether a dataset's rows are compressed pictures: bytes of any of HDF5's kinds, or uint8 numbers."""
  return (item.ndim == 1 and item.dtype.kind in "SVO") or (item.ndim == 2 and item.dtype.kind in "iu")


def _row_bytes(row: Any) -> bytes:
  if isinstance(row, bytes | np.void):
    return row if isinstance(row, bytes) else row.tobytes()
  if isinstance(row, str):
    raise ValueError("a text is stored where a picture's bytes are expected")
  return np.asarray(row).astype(np.uint8).tobytes()


def cameras(group: Any, prefix: str = "") -> dict[str, str]:
  """Returns the cameras in a group and the groups in it: name -> why the pictures are no RGB, '' where they are."""
  found = {}
  for name in group.keys():  # noqa: SIM118
    item = group.get(name)
    if isinstance(item, h5py.Group):
      found |= cameras(item, f"{prefix}{name}/")
    elif isinstance(item, h5py.Dataset) and is_encoded(item):
      word = pictures.other_word(name)
      found[f"{prefix}{name}"] = f"'{word}' in its name" if word else ""
    elif isinstance(item, h5py.Dataset):
      found[f"{prefix}{name}"] = pictures.why_not_rgb(name, item.shape, item.dtype)
  return found


def numeric_arrays(group: Any, *, frames: int) -> Arrays:
  """Returns the arrays of numbers with one entry per frame, by their path below `group`; no pictures."""
  found = Arrays()
  _add_arrays(found, group, frames, "")
  return found


def _add_arrays(found: Arrays, group: Any, frames: int, prefix: str) -> None:
  for name in group.keys():  # noqa: SIM118
    try:
      item = group[name]
    except (KeyError, OSError, RuntimeError) as error:  # a broken link, or a kind that HDF5 does not know here
      found.unread[f"{prefix}{name}"] = reason(error)
      continue
    if isinstance(item, h5py.Group):
      _add_arrays(found, item, frames, f"{prefix}{name}/")
    elif isinstance(item, h5py.Dataset):
      shape, dtype = item.shape or (), item.dtype
      if not shape or dtype.kind not in "fiub" or is_picture(shape, dtype):
        found.unread[f"{prefix}{name}"] = f"stored is {dtype}{list(shape)}, no numbers of every frame"
      elif shape[0] == frames:
        found.add(f"{prefix}{name}", lambda item=item: checked(item)[()])
      else:
        found.unread[f"{prefix}{name}"] = f"it has {shape[0]} rows, the episode {frames}"


def is_picture(shape: Sequence[int], dtype: np.dtype) -> bool:
  """Returns whether an array of numbers holds pictures, or rows of compressed bytes."""
  return len(shape) == 4 or (dtype.kind == "u" and len(shape) >= (2 if dtype == np.uint8 else 3))


def texts_of(group: Any, name: str, frames: int) -> list[str]:
  """Returns `frames` texts of a chosen field: an attribute or a dataset of an episode, one text or one per frame.

  Raises:
    Pi0RagError: there is none of that name.
    ValueError: it holds something else than text.
  """
  if name not in group.attrs and name not in group:
    raise unknown_name("field for the prompt", name, [*group.attrs, *group])
  value = group.attrs[name] if name in group.attrs else stored(group, name)[()]
  texts = [checks.as_text(entry, name) for entry in np.asarray(value, object).reshape(-1).tolist()]
  if len(set(texts)) == 1:
    return texts[:1] * frames
  if len(texts) != frames:
    raise ValueError(f"'{name}' holds {len(texts)} different texts for {frames} frames: choose a field of one")
  return texts


def first_text(attributes: Any, names: Iterable[str]) -> str:
  """Returns the first attribute of these names that is a text, or ''."""
  for name in names:
    if name in attributes:
      value = np.asarray(attributes[name], object).reshape(-1)
      if len(value) == 1 and isinstance(value[0], str | bytes):
        return checks.as_text(value[0], name)
  return ""


def json_of(attributes: Any, name: str) -> Mapping[str, Any]:
  """Returns what an attribute holds as JSON; {} where there is none, or something else."""
  try:
    value = json.loads(first_text(attributes, (name,)) or "{}")
  except (ValueError, RecursionError):
    return {}
  return value if isinstance(value, Mapping) else {}


def plain(value: Any) -> Any:
  """Returns an attribute without numpy's types."""
  return value.item() if isinstance(value, np.generic) else value
