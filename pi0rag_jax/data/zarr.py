"""Replay buffers of Diffusion Policy: zarr arrays of all episodes' frames, in a folder or a `.zarr.zip`.

`data/<name>` holds one row per frame, `meta/episode_ends` int64[episodes] where each episode ends. Read through
tensorstore; its zarr driver knows the usual compressors, but not JPEG XL, as UMI's pictures are stored.
"""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from pi0rag_jax.data import checks, pictures
from pi0rag_jax.data.dataset import (
  DEFAULT_FIELDS,
  Arrays,
  Dataset,
  EpisodeData,
  Fields,
  choose_cameras,
  prompt_or_default,
  reason,
)
from pi0rag_jax.data.formats import find_zarr
from pi0rag_jax.errors import Pi0RagError

STATE, ACTIONS, TIMES = "state", "action", "timestamp"
# The robot's own measurements where there is no `state`, in the order of names.
STATE_PREFIX = "robot"
DEFAULT_FPS = 10.0  # Diffusion Policy's push-T; the arrays do not say
CACHE_BYTES = 256 * 2**20  # decoded chunks of pictures, which hold many frames each


class ZarrDataset(Dataset):
  """Episodes in the order of the buffer."""

  format = "zarr"

  def __init__(self, path, *, fields: Fields = DEFAULT_FIELDS, skip_bad: bool = False):
    super().__init__(path, fields=fields, skip_bad=skip_bad)
    self._root = find_zarr(self.path) or self.path
    self._zipped = self._root.is_file()
    self._context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
    self._lock, self._arrays, self._white = threading.Lock(), {}, {}
    self.fps, self.says_fps = float(fields.fps or DEFAULT_FPS), fields.fps is not None
    ends = self._read_ends()
    self._starts = np.concatenate([[0], ends[:-1]])
    self.lengths = ends - self._starts
    for name in self._names():
      try:
        self._arrays[name] = self._open(f"data/{name}")
      except ValueError as error:
        self._arrays[name] = str(error)
    cameras = {name: self._why_not_rgb(name, a) for name, a in self._arrays.items() if _is_picture(a)}
    self.camera_keys = choose_cameras(cameras, fields.cameras)

  def _read_ends(self) -> np.ndarray:
    where = f"'{self._root}': meta/episode_ends"
    try:
      ends = np.asarray(self._open("meta/episode_ends").read().result())
    except Exception as error:
      raise Pi0RagError(f"{where} cannot be read: {reason(error)}") from error
    whole = ends.ndim == 1 and ends.dtype.kind in "iu" and ends.size
    if not whole or (np.diff(ends.astype(np.int64), prepend=0) < 1).any():
      raise Pi0RagError(f"{where} is {ends.dtype}{list(ends.shape)} from {ends.ravel()[:3].tolist()}, allowed: whole "
                        "numbers that rise from above 0")
    return ends.astype(np.int64)

  def _names(self) -> list[str]:
    """Returns the names of the arrays below `data`."""
    entries = self._store("").list().result()
    parts = [entry.decode("utf8", "replace").split("/") for entry in entries]
    return sorted({p[1] for p in parts if len(p) == 3 and p[0] == "data" and p[2] in (".zarray", "zarr.json")})

  def _spec(self, name: str) -> dict[str, Any]:
    if self._zipped:
      return {"driver": "zip", "base": {"driver": "file", "path": str(self._root.absolute())}, "path": name}
    return {"driver": "file", "path": f"{self._root.absolute()}/{name}"}

  def _store(self, name: str) -> ts.KvStore:
    try:
      return ts.KvStore.open(self._spec(name)).result()
    except Exception as error:
      raise Pi0RagError(f"'{self._root}' cannot be opened: {reason(error)}") from error

  def _open(self, name: str) -> ts.TensorStore:
    """Returns an array.

    Raises:
      ValueError: there is none that tensorstore reads.
    """
    store = self._store(f"{name}/")
    for file, driver in ((".zarray", "zarr"), ("zarr.json", "zarr3")):
      if stored := store.read(file).result().value:
        checks.shape(json.loads(stored).get("shape", [])[1:], f"'{self._root}/{name}': shape")
        spec = {"driver": driver, "kvstore": self._spec(f"{name}/"), "recheck_cached_data": False}
        return ts.open(spec, context=self._context, open=True, read=True).result()
    raise ValueError(f"no array '{name}'")

  def _why_not_rgb(self, name: str, array: ts.TensorStore) -> str:
    if why := pictures.why_not_rgb(name, array.shape, array.dtype.numpy_dtype):
      return why
    if array.dtype.numpy_dtype.kind == "f":  # as push-T has them, from 0 to 255
      self._white[name] = 255.0 if float(array[:1].read().result().max(initial=0.0)) > 1 else 1.0
    return ""

  def episode_name(self, episode: int) -> str:
    return f"episode {episode} in '{self._root}'"

  def files(self) -> list[Path]:
    return [self._root] if self._zipped else sorted(file for file in self._root.rglob("*") if file.is_file())

  def _rows(self, name: str, episode: int) -> np.ndarray:
    array, start = self._arrays[name], int(self._starts[episode])
    if isinstance(array, str):
      raise ValueError(array)
    stop = start + int(self.lengths[episode])
    if array.shape[0] < stop:
      raise ValueError(f"it has {array.shape[0]} rows, episodes end at {stop}")
    return np.asarray(array[start:stop].read().result())

  def _read_arrays(self, episode: int) -> EpisodeData:
    length, arrays = int(self.lengths[episode]), Arrays()
    for name, array in self._arrays.items():
      if isinstance(array, str):
        arrays.unread[name] = array
      elif array.ndim and not _is_picture(array) and array.dtype.numpy_dtype.kind in "fiub":
        arrays.add(name, lambda name=name: self._rows(name, episode))
    known = sorted(arrays | arrays.unread)
    robot = [name for name in known if name.startswith(STATE_PREFIX)]
    state = self.fields.state or ([STATE] if STATE in known else robot) or STATE
    times = np.asarray(arrays[TIMES], np.float64).reshape(-1) if TIMES in arrays else np.arange(length) / self.fps
    return EpisodeData(
      state=arrays.joined(state, what="state"),
      actions=arrays.joined(self.fields.actions or ACTIONS, what="actions"),
      prompts=[prompt_or_default(None, self.fields.default_prompt)] * length,
      timestamps=times - times[0] if len(times) == length else np.arange(length) / self.fps,
      extras=dict(arrays),
    )

  def _read_camera(self, episode: int, key: str, indices: np.ndarray) -> np.ndarray:
    array, rows = self._arrays[key], int(self._starts[episode]) + indices
    if rows.size and array.shape[0] <= rows[-1]:
      raise ValueError(f"it has {array.shape[0]} rows, row {rows[-1]} is asked for")
    pictures.check_size(*[size for size in (*array.shape[1:], 1) if size not in pictures.CHANNELS][:2])
    return pictures.as_rgb(np.asarray(array[rows].read().result()), white=self._white.get(key, 1.0))


def _is_picture(array: ts.TensorStore | str) -> bool:
  return not isinstance(array, str) and (array.ndim == 4 or (array.ndim == 3 and array.dtype.numpy_dtype.kind == "u"))
