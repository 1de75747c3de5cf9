"""A folder of decoded frames in one size, built once and gone on with after an interruption.

A cache is keyed by the data set's fingerprint, the picture size and the cameras. Pictures and numbers of every
episode have their place from the start; `done.u8` says, per episode, whether it is PENDING, DONE or DAMAGED, and is
written after the contents are on the disk.
"""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax import files, schema
from pi0rag_jax.data import checks
from pi0rag_jax.data.arrays import ArrayDataset, FileRows, resized
from pi0rag_jax.data.dataset import DEFAULT_FIELDS, DamagedEpisode, Dataset, Fields, expanded
from pi0rag_jax.data.formats import CACHE_HEADER
from pi0rag_jax.errors import Pi0RagError

VERSION = 2  # 1 kept prompts and frames that are read otherwise now
PENDING, DONE, DAMAGED = 0, 1, 2
PROMPTS, MARKS, LOCK = "prompts.jsonl", "done.u8", "lock"
# Frames decoded at once, which bounds the memory that building takes.
BLOCK_FRAMES = 64


class CachedDataset(ArrayDataset):
  """A whole cache; episodes that were damaged are not in it."""

  format = "cache"

  def __init__(self, path, *, fields: Fields = DEFAULT_FIELDS, skip_bad: bool = False):
    folder = expanded(path)
    header = _read_header(folder)
    try:
      marks = np.fromfile(folder / MARKS, np.uint8)
    except OSError as error:
      raise Pi0RagError(f"the cache '{folder}' is damaged ({error}): remove it") from error
    if len(marks) != len(header["lengths"]) or (marks == PENDING).any():
      raise Pi0RagError(f"the cache '{folder}' is not whole: build it again, what is there is kept")
    if fields != DEFAULT_FIELDS:
      raise Pi0RagError("fields are chosen when a cache is built, not when it is opened")
    lengths = np.asarray(header["lengths"], np.int64)
    starts, kept = np.cumsum(lengths) - lengths, marks == DONE
    try:
      images, state, actions, index = open_arrays(folder, header, writable=False)
    except OSError as error:
      raise Pi0RagError(f"the cache '{folder}' is damaged ({error}): remove it") from error
    super().__init__(
      folder, images=images, state=state, actions=actions, prompt_index=index, prompts=_read_prompts(folder),
      starts=starts[kept], lengths=lengths[kept], skip_bad=skip_bad,
      fps=header["fps"], rates=np.asarray(header["rates"], float)[kept])


def build_cache(
  dataset: Dataset, root: str | Path, *, image_size: int | tuple[int, int] | None = None,
  cameras: Sequence[str] | None = None, workers: int = 2,
) -> CachedDataset:
  """Returns the cache of a data set below `root`, after making what is missing of it.

  Args:
    dataset: damaged episodes are left out and counted where it skips them.
    root: holds caches of any data sets.
    image_size: (height, width) or both in one, px, that pictures are brought to with padding; None keeps theirs.
    cameras: our names; None is all.
    workers: threads that decode.
  Raises:
    Pi0RagError: too little space, or pictures of several sizes without `image_size`.
    DamagedEpisode: an episode cannot be read, and the data set does not skip such.
  """
  names = list(dataset.cameras if cameras is None else cameras)
  key = hashlib.sha256(f"{VERSION} {dataset.fingerprint()} {image_size} {names}".encode()).hexdigest()[:16]
  folder = expanded(root) / f"{dataset.path.name}-{key}"
  folder.mkdir(parents=True, exist_ok=True)
  with _locked(folder):
    if not (folder / CACHE_HEADER).is_file():
      _write_header(folder, dataset, names, image_size)
    _fill(folder, dataset, names, image_size, workers)
  return CachedDataset(folder, skip_bad=dataset.skip_bad)


def _fill(folder: Path, dataset: Dataset, names: list[str], image_size: Any, workers: int) -> None:
  """Writes every episode that is pending."""
  header = _read_header(folder)
  images, state, actions, index = open_arrays(folder, header, writable=True)
  marks = FileRows(folder / MARKS, (), np.uint8, dataset.num_episodes, writable=True)
  pending = np.flatnonzero(marks[:] == PENDING).tolist()
  starts = np.cumsum(dataset.lengths) - dataset.lengths
  prompts = {text: number for number, text in enumerate(_read_prompts(folder))}

  def write(episode: int) -> list[str] | DamagedEpisode:
    """Returns the episode's texts after writing all else of it."""
    start, length = int(starts[episode]), int(dataset.lengths[episode])
    try:
      data = dataset.read_episode(episode, images=False)
      for first in range(0, length, BLOCK_FRAMES):
        block = np.arange(first, min(first + BLOCK_FRAMES, length))
        for name, frames in dataset.read_frames(episode, block, names).items():
          _put(images[name], start + first, resized(frames, image_size), f"camera '{name}'")
      _put(state, start, data.state, "the state")
      _put(actions, start, data.actions, "the actions")
    except DamagedEpisode as error:
      return error
    return list(data.prompts)

  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    for first in range(0, len(pending), 4 * workers):
      block = pending[first : first + 4 * workers]
      results = dict(zip(block, pool.map(write, block)))
      for episode, found in results.items():
        if isinstance(found, DamagedEpisode):
          dataset.count_damage(dataset.episode_name(episode), found)
        else:
          _append_prompts(folder, prompts, found)
          _put(index, int(starts[episode]), np.asarray([prompts[text] for text in found]), "the prompts")
      for array in (state, actions, index, *images.values()):
        array.flush()
      for episode, found in results.items():
        marks[episode : episode + 1] = np.asarray([DAMAGED if isinstance(found, DamagedEpisode) else DONE], np.uint8)
      marks.flush()


def _put(array: FileRows, start: int, values: np.ndarray, what: str) -> None:
  if values.shape[1:] != array.shape[1:]:
    raise Pi0RagError(f"{what} has shape {list(values.shape[1:])} per frame, the first episode's has "
                      f"{list(array.shape[1:])}: give an image size, or the fields of one shape")
  array[start : start + len(values)] = values


def _write_header(folder: Path, dataset: Dataset, names: list[str], image_size: Any) -> None:
  """Writes shapes and lengths, which fix every frame's place; they come from the first episode that can be read."""
  for episode in range(dataset.num_episodes):
    try:
      data = dataset.read_episode(episode, images=False)
      frames = dataset.read_frames(episode, [0], names)
      break
    except DamagedEpisode as error:
      dataset.count_damage(dataset.episode_name(episode), error)
  else:
    raise Pi0RagError(f"no episode in '{dataset.path}' can be read")
  header = {
    "version": VERSION, "source": str(dataset.path), "format": dataset.format, "fps": dataset.fps,
    "rates": [dataset.episode_fps(episode) for episode in range(dataset.num_episodes)],
    "lengths": dataset.lengths.tolist(), "state": list(data.state.shape[1:]), "actions": list(data.actions.shape[1:]),
    "images": {name: list(resized(frames[name], image_size).shape[1:]) for name in names},
  }
  needed, free = _size(header), shutil.disk_usage(folder).free
  if needed > free:
    raise Pi0RagError(f"the cache in '{folder}' takes {needed / 1e9:.1f} GB, free are {free / 1e9:.1f} GB: "
                      "choose another folder, fewer cameras or a smaller image size")
  files.write_json(folder / CACHE_HEADER, header)


def open_arrays(
  folder: Path, header: dict, *, writable: bool
) -> tuple[dict[str, FileRows], FileRows, FileRows, FileRows]:
  """Returns (camera -> pictures, state, actions, prompt index)."""
  rows = sum(header["lengths"])

  def open_rows(name: str, shape: Sequence[int], dtype: Any) -> FileRows:
    return FileRows(folder / name, shape, dtype, rows, writable=writable)

  shapes = header["images"].items()
  images = {name: open_rows(f"images_{i}.u8", shape, np.uint8) for i, (name, shape) in enumerate(shapes)}
  return (images, open_rows("state.f32", header["state"], np.float32),
          open_rows("actions.f32", header["actions"], np.float32), open_rows("prompts.i32", (), np.int32))


def _size(header: dict) -> int:
  """Returns the cache's bytes."""
  numbers = 4 * (int(np.prod(header["state"])) + int(np.prod(header["actions"])) + 1)
  return sum(header["lengths"]) * (numbers + sum(int(np.prod(shape)) for shape in header["images"].values()))


def _read_header(folder: Path) -> dict:
  where = f"'{folder / CACHE_HEADER}'"
  header = checks.mapping(checks.read_json(folder / CACHE_HEADER), where)
  if header.get("version") != VERSION:
    raise Pi0RagError(f"the cache '{folder}' has version {checks.shown(header.get('version'))}, read is {VERSION}: "
                      "remove it")
  checks.number(header.get("fps"), f"{where}: fps", low=0, high=checks.MAX_FPS)
  for name in ("lengths", "rates", "state", "actions"):
    if not isinstance(header.get(name), list):
      raise checks.refused(f"{where}: {name}", header.get(name), "a list")
  for name in ("state", "actions"):
    checks.shape(header[name], f"{where}: {name}")
  if len(header["lengths"]) != len(header["rates"]):
    raise Pi0RagError(f"{where} has {len(header['lengths'])} lengths and {len(header['rates'])} rates")
  for length, rate in zip(header["lengths"], header["rates"]):
    checks.integer(length, f"{where}: lengths", low=1, high=checks.MAX_FRAMES)
    checks.number(rate, f"{where}: rates", low=0, high=checks.MAX_FPS)
  for name, shape in checks.mapping(header.get("images"), f"{where}: images").items():
    checks.shape(shape, f"{where}: images, '{name}'")
  return dict(header)


def _read_prompts(folder: Path) -> list[str]:
  file = folder / PROMPTS
  try:
    return [schema.parse(line, str, f"'{file}'") for line in file.read_bytes().splitlines()]
  except FileNotFoundError:
    return []
  except (OSError, Pi0RagError) as error:
    raise Pi0RagError(f"the cache '{folder}' is damaged ({error}): remove it") from error


def _append_prompts(folder: Path, prompts: dict[str, int], texts: list[str]) -> None:
  """Adds texts that are new, on the disk before any episode that uses them is marked."""
  new = [text for text in dict.fromkeys(texts) if text not in prompts]
  if not new:
    return
  prompts.update({text: len(prompts) + i for i, text in enumerate(new)})
  files.write_text(folder / PROMPTS, "".join(json.dumps(text) + "\n" for text in prompts))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
  """Lets one process at a time build; the others wait and find it built."""
  with open(folder / LOCK, "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
