"""Data sets whose frames lie one after the other in arrays, in memory or in files: batches are a few reads."""

import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax.data.dataset import DEFAULT_FIELDS, Dataset, EpisodeData
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots import images as images_lib


class FileRows:
  """A file of rows of one shape, read without mapping it: memory use does not grow with what was read."""

  def __init__(self, path: Path, row_shape: Sequence[int], dtype: Any, rows: int, *, writable: bool = False):
    """Opens the file; a writable one is made, of its full size, where it is missing."""
    self.path, self.dtype, self._row_shape = path, np.dtype(dtype), tuple(row_shape)
    self.shape = (rows, *self._row_shape)
    self._row_bytes = int(np.prod(self._row_shape)) * self.dtype.itemsize
    self._fd = os.open(path, os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY, 0o644)
    weakref.finalize(self, os.close, self._fd)
    if writable:
      os.ftruncate(self._fd, rows * self._row_bytes)
    if os.fstat(self._fd).st_size < rows * self._row_bytes:
      raise OSError(f"'{path}' is cut off: {rows} rows of {self._row_bytes} bytes are announced")

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
    if isinstance(rows, slice):
      start, stop, _ = rows.indices(len(self))
      out = np.empty((max(stop - start, 0), *self._row_shape), self.dtype)
      self._read(out, start)
      return out
    out = np.empty((len(rows), *self._row_shape), self.dtype)
    for target, row in zip(out.reshape(len(rows), -1), rows.tolist()):
      self._read(target, row)
    return out

  def __setitem__(self, rows: slice, values: np.ndarray) -> None:
    data = np.ascontiguousarray(values, self.dtype).reshape(-1).view(np.uint8).data
    offset = rows.start * self._row_bytes
    while data:
      written = os.pwrite(self._fd, data, offset)
      data, offset = data[written:], offset + written

  def flush(self) -> None:
    """Returns when everything written is on the disk."""
    os.fdatasync(self._fd)

  def _read(self, out: np.ndarray, row: int) -> None:
    view, offset = out.reshape(-1).view(np.uint8).data, row * self._row_bytes
    while view:
      count = os.preadv(self._fd, [view], offset)
      if not count:
        raise OSError(f"'{self.path}' is cut off")
      view, offset = view[count:], offset + count


class ArrayDataset(Dataset):
  """Frames of all episodes in arrays of N rows."""

  format = "arrays"

  def __init__(
    self, path: str | Path, *, images: Mapping[str, Any], state: Any, actions: Any, prompt_index: Any,
    prompts: Sequence[str], starts: np.ndarray, lengths: np.ndarray, fps: float, rates: np.ndarray | None = None,
    skip_bad: bool = False,
  ):
    """
    Args:
      path: where it comes from.
      images: camera -> uint8[N, H, W, 3]; arrays, or FileRows.
      state: float32[N, P].
      actions: float32[N, A], or [N, T, A].
      prompt_index: int32[N], into prompts.
      prompts: all texts.
      starts, lengths: int64[episodes], rows of every episode.
      fps: frames per second.
      rates: float64[episodes], the same of every episode where they differ.
      skip_bad: damage met in reading is counted instead of raised.
    """
    super().__init__(path, fields=DEFAULT_FIELDS, skip_bad=skip_bad)
    self._images, self._state, self._actions, self._prompt_index = images, state, actions, prompt_index
    self._prompts, self._starts, self.lengths, self.fps = list(prompts), starts, lengths, fps
    self._rates = np.full(len(lengths), fps) if rates is None else rates
    self.camera_keys = {name: name for name in images}

  @property
  def state_dim(self) -> int:
    return self._state.shape[-1]

  @property
  def action_dim(self) -> int:
    return self._actions.shape[-1]

  def episode_name(self, episode: int) -> str:
    return f"episode {episode} in '{self.path}'"

  def episode_fps(self, episode: int) -> float:
    return float(self._rates[self._checked(episode)])

  def files(self) -> list[Path]:
    arrays = [self._state, self._actions, self._prompt_index, *self._images.values()]
    return [array.path for array in arrays if isinstance(array, FileRows)]

  def read_samples(
    self, episodes: np.ndarray, frames: np.ndarray, *, horizon: int, cameras: Sequence[str] | None = None
  ) -> dict[str, Any]:
    """Returns what Dataset.read_samples does, whatever the episodes, without going through them one by one."""
    with self._damage(f"'{self.path}'"):
      rows = self._starts[episodes] + frames
      left = self.lengths[episodes] - frames
      actions_BTA, is_pad_BT = self._chunks(rows, left, horizon)
      return {
        "image": self.read_pictures(episodes, frames, self.cameras if cameras is None else cameras),
        "state": self._state[rows],
        "actions": actions_BTA,
        "actions_is_pad": is_pad_BT,
        "prompt": [self._prompts[index] for index in self._prompt_index[rows].tolist()],
      }

  def read_pictures(self, episodes: np.ndarray, frames: np.ndarray, cameras: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns {camera: uint8[N, H, W, 3]} of frames int[N] of episodes int[N]."""
    rows = self._starts[episodes] + frames
    return {name: self._images[name][rows] for name in cameras}

  def _chunks(self, rows: np.ndarray, left: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (actions_BTA, is_pad_BT) of chunks at rows with `left` frames to the end of their episodes."""
    if len(self._actions.shape) == 3:
      return self._actions[rows][:, :horizon], np.zeros((len(rows), horizon), bool)
    chunks_BTA = np.empty((len(rows), horizon, self._actions.shape[-1]), np.float32)
    for chunk_TA, row, count in zip(chunks_BTA, rows.tolist(), np.minimum(left, horizon).tolist()):
      chunk_TA[:count] = self._actions[row : row + count]
      chunk_TA[count:] = chunk_TA[count - 1]
    return chunks_BTA, np.arange(horizon) >= left[:, None]

  def _read_arrays(self, episode: int) -> EpisodeData:
    length = int(self.lengths[episode])
    rows = slice(int(self._starts[episode]), int(self._starts[episode]) + length)
    prompts = [self._prompts[index] for index in self._prompt_index[rows].tolist()]
    return EpisodeData(self._state[rows], self._actions[rows], prompts, np.arange(length) / self._rates[episode])

  def _read_camera(self, episode: int, key: str, indices: np.ndarray) -> np.ndarray:
    return self._images[key][self._starts[episode] + indices]


def load_into_memory(
  dataset: Dataset, *, image_size: int | tuple[int, int] | None = None, cameras: Sequence[str] | None = None
) -> ArrayDataset:
  """Returns the data set with every frame decoded in memory.

  Args:
    dataset: damaged episodes are left out where it skips them.
    image_size: (height, width) or both in one, px, that pictures are brought to with padding; None keeps theirs.
    cameras: our names; None is all.
  """
  names = dataset.cameras if cameras is None else tuple(cameras)
  images: dict[str, np.ndarray] = {}
  parts, prompts, rates, stop = [], {}, [], 0
  for episode, data in dataset.iterate():
    start, stop = stop, stop + len(data)
    for name, frames in dataset.read_frames(episode, np.arange(len(data)), names).items():
      frames = resized(frames, image_size)
      if name not in images:
        images[name] = np.empty((dataset.num_frames, *frames.shape[1:]), np.uint8)
      if frames.shape[1:] != images[name].shape[1:]:
        raise Pi0RagError(f"camera '{name}' of {dataset.episode_name(episode)} has pictures of shape "
                          f"{list(frames.shape[1:])}, those before {list(images[name].shape[1:])}: give an image size")
      images[name][start:stop] = frames
    rates.append(dataset.episode_fps(episode))
    index = [prompts.setdefault(text, len(prompts)) for text in data.prompts]
    parts.append((data.state.astype(np.float32), data.actions.astype(np.float32), np.asarray(index, np.int32)))
  if not parts:
    raise Pi0RagError(f"no episode in '{dataset.path}' can be read")
  state, actions, prompt_index = (np.concatenate(columns) for columns in zip(*parts))
  lengths = np.asarray([len(part[0]) for part in parts], np.int64)
  return ArrayDataset(
    dataset.path, images={name: frames[:stop] for name, frames in images.items()}, state=state, actions=actions,
    prompt_index=prompt_index, prompts=list(prompts), starts=np.cumsum(lengths) - lengths, lengths=lengths,
    fps=dataset.fps, rates=np.asarray(rates), skip_bad=dataset.skip_bad,
  )


def resized(frames: np.ndarray, size: int | tuple[int, int] | None) -> np.ndarray:
  """Returns uint8[N, h, w, 3] in the pictures' own aspect ratio, centred on black; as they are where size is None."""
  if size is None:
    return frames
  height, width = (size, size) if isinstance(size, int) else size
  return images_lib.resize_with_pad(frames, height, width)
