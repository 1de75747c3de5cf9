"""Features of a frozen backbone on disk, so that an epoch of a head reads a table instead of running the backbone.

A cache is `<root>/<digest>/`: `cache.json` and shards `features_<first row>.npy` of equal size. The digest is of the
weights, the preprocessing and the data set, so another of any of them is another directory, and what is there is
never of the wrong one. A shard is written under another name and renamed: it is whole or absent, and a build that was
killed goes on with the shards that are missing. Building holds one shard in memory; reading maps files.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from pi0rag_jax import files, schema
from pi0rag_jax.errors import Pi0RagError, cut

FORMAT_VERSION = 1
FILE_NAME = "cache.json"
DTYPES = ("float32", "float16")
# 8 MB of 2048 numbers in float32: what a kill loses, and what a build holds.
SHARD_ROWS = 1024
# Files are hashed in pieces of so many bytes.


Count = Annotated[int, msgspec.Meta(ge=1, le=10**9)]


class _Shards(msgspec.Struct):
  """What `cache.json` says of the files beside it."""

  rows: Count
  width: Count
  shard_rows: Count
  dtype: Literal["float32", "float16"]


@dataclasses.dataclass(frozen=True)
class CacheKey:
  """What decides a table of features; make each part with `fingerprint`."""

  weights: str
  preprocessing: str  # the backbone's description, the tokenizer, how pictures are resized
  dataset: str

  @property
  def digest(self) -> str:
    return fingerprint(dataclasses.asdict(self))[:32]


def fingerprint(tree) -> str:
  """Returns the SHA-256, in hex, of a nested dict or list of arrays, texts, numbers and None.

  Arrays count with dtype and shape, and are fetched from the device one by one.
  """
  digest = hashlib.sha256()
  _feed(digest, tree, "")
  return digest.hexdigest()


def _feed(digest, node, path: str) -> None:
  """Adds a node of a tree, and what it holds, to a hash."""
  if isinstance(node, Mapping):
    digest.update(f"{path}{{{len(node)};".encode())
    for key in sorted(node):
      _feed(digest, node[key], f"{path}/{key}")
  elif isinstance(node, (list, tuple)):
    digest.update(f"{path}[{len(node)};".encode())
    for i, item in enumerate(node):
      _feed(digest, item, f"{path}/{i}")
  elif hasattr(node, "shape"):
    array = np.ascontiguousarray(node)
    digest.update(f"{path}:{array.dtype}{array.shape};".encode())
    # Not every dtype of jax has a buffer of its own; bytes always do.
    digest.update(array.reshape(-1).view(np.uint8).data)
  elif node is None or isinstance(node, (str, bytes, int, float)):
    digest.update(f"{path}:{node!r};".encode())
  else:
    raise Pi0RagError(f"fingerprint: '{path}' is a {type(node).__name__}; allowed: arrays, texts, numbers, None")


class FeatureCache:
  """A whole table float[F, D] in shards; `take` gathers rows."""

  def __init__(self, directory: Path, rows: int, width: int, shard_rows: int, dtype: str):
    self.directory, self.width = directory, width
    self._rows, self._shard_rows = rows, shard_rows
    self._shards = [
      _open_shard(directory, first, (stop - first, width), dtype) for first, stop in _spans(rows, shard_rows)]

  def __len__(self) -> int:
    return self._rows

  def take(self, rows) -> np.ndarray:
    """Returns float32[..., D] of rows int[...]; only the pages that hold them are read."""
    rows = np.asarray(rows)
    if rows.size and (rows.min() < 0 or rows.max() >= self._rows):
      raise Pi0RagError(f"rows from {rows.min()} to {rows.max()}, the cache has {self._rows}")
    flat = rows.reshape(-1)
    out_RD = np.empty((flat.size, self.width), np.float32)
    # A window's rows follow one another, and most batches touch all shards: one gather for each.
    number = flat // self._shard_rows
    for i in np.unique(number):
      here = number == i
      out_RD[here] = self._shards[i][flat[here] - i * self._shard_rows]
    return out_RD.reshape(*rows.shape, self.width)


class FeatureRows:
  """Some rows of a cache, numbered from 0 on: what a selection of episodes reads of the whole data set's."""

  def __init__(self, cache: FeatureCache, rows_F: np.ndarray):
    self.directory, self.width = cache.directory, cache.width
    self._cache, self._rows_F = cache, rows_F

  def __len__(self) -> int:
    return len(self._rows_F)

  def take(self, rows) -> np.ndarray:
    """Returns float32[..., D], as FeatureCache does."""
    return self._cache.take(self._rows_F[np.asarray(rows)])


def build(root, key: CacheKey, encode: Callable[[np.ndarray], Any], rows: int, *, width: int, batch_size: int = 32,
          shard_rows: int = SHARD_ROWS, dtype: str = "float32",
          progress: Callable[[int, int], None] | None = None) -> FeatureCache:
  """Returns the cache of `key` below `root`, after computing what is missing of it.

  Args:
    root: a directory that caches of many keys share.
    encode: rows int[batch_size] -> features [batch_size, D]; always called with so many rows, so that it compiles
      once (the last ones may repeat).
    rows: F, of the data set.
    width: D.
    shard_rows, dtype: of the files; one of DTYPES. A cache that was begun with others keeps them.
    progress: is told (rows that are there, F) after each shard.
  Raises:
    Pi0RagError: the features are not [batch_size, D] or not finite, or the cache is of another size or version.
  """
  if rows < 1 or batch_size < 1 or shard_rows < 1 or dtype not in DTYPES:
    raise Pi0RagError(f"feature cache: rows {rows}, batch_size {batch_size}, shard_rows {shard_rows}, dtype {dtype}; "
                      f"allowed: at least 1 each, and {', '.join(DTYPES)}")
  directory = Path(root) / key.digest
  directory.mkdir(parents=True, exist_ok=True)
  layout = _layout(directory, key, rows, width, shard_rows, dtype)
  for first, stop in _spans(rows, layout["shard_rows"]):
    shape = (stop - first, width)
    try:
      _open_shard(directory, first, shape, layout["dtype"])
    except Pi0RagError:
      shard_RD = _narrowed(_encode_rows(encode, np.arange(first, stop), width, batch_size), layout["dtype"])
      files.write(directory / _shard_name(first), lambda file, shard_RD=shard_RD: np.save(file, shard_RD))
    if progress is not None:
      progress(stop, rows)
  return FeatureCache(directory, rows, width, layout["shard_rows"], layout["dtype"])


def is_whole(root, key: CacheKey) -> bool:
  """Returns whether `load` would find the cache of `key` below `root`."""
  try:
    load(root, key)
  except Pi0RagError:
    return False
  return True


def load(root, key: CacheKey) -> FeatureCache:
  """Returns the cache of `key` below `root`.

  Raises:
    Pi0RagError: there is none, or it is not whole.
  """
  directory = Path(root) / key.digest
  if not (directory / FILE_NAME).is_file():
    raise Pi0RagError(f"no features of these weights, preprocessing and data in {root} ({key.digest}): build them; "
                      f"there are {len(list(Path(root).glob('*/' + FILE_NAME)))} others")
  layout = _read_layout(directory, {"version": FORMAT_VERSION, **dataclasses.asdict(key)})
  return FeatureCache(directory, layout["rows"], layout["width"], layout["shard_rows"], layout["dtype"])


def _layout(directory: Path, key: CacheKey, rows: int, width: int, shard_rows: int, dtype: str) -> Mapping[str, Any]:
  """Returns what `cache.json` says, written first where it is missing."""
  path = directory / FILE_NAME
  fixed = {"version": FORMAT_VERSION, **dataclasses.asdict(key), "rows": rows, "width": width}
  if not path.is_file():
    files.write_json(path, {**fixed, "shard_rows": shard_rows, "dtype": dtype})
  return _read_layout(directory, fixed)


def _read_layout(directory: Path, fixed: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns what `cache.json` says, after checking that it agrees with `fixed`."""
  path = directory / FILE_NAME
  try:
    found = schema.read(path, dict[str, Any])
    schema.convert(found, _Shards, str(path))
  except Pi0RagError as error:
    raise Pi0RagError(f"{error}: remove {directory} to build it anew") from error
  different = [f"{name} {cut(repr(found.get(name)))}, wanted {value!r}" for name, value in fixed.items()
               if found.get(name) != value]
  if different:
    raise Pi0RagError(f"{path} does not fit: {'; '.join(different)}. Remove {directory} to build it anew")
  return found


def _encode_rows(encode, rows: np.ndarray, width: int, batch_size: int) -> np.ndarray:
  """Returns float32[R, D] of rows int[R]."""
  out_RD = np.empty((len(rows), width), np.float32)
  for start in range(0, len(rows), batch_size):
    part = rows[start : start + batch_size]
    padded = np.concatenate([part, np.repeat(part[-1:], batch_size - len(part))])
    features_BD = np.asarray(encode(padded), np.float32)
    if features_BD.shape != (batch_size, width) or not np.isfinite(features_BD).all():
      raise Pi0RagError(f"features of rows {part[0]} to {part[-1]} have shape {features_BD.shape}, wanted "
                        f"{(batch_size, width)}, all finite")
    out_RD[start : start + len(part)] = features_BD[: len(part)]
  return out_RD


def _narrowed(shard_RD: np.ndarray, dtype: str) -> np.ndarray:
  """Returns a shard in the dtype of the files."""
  largest = np.abs(shard_RD).max()
  if largest > np.finfo(dtype).max:
    raise Pi0RagError(f"features reach {largest:g}, {dtype} ends at {np.finfo(dtype).max:.0f}: use float32, in another "
                      "root")
  return shard_RD.astype(dtype)


def _spans(rows: int, shard_rows: int) -> Iterator[tuple[int, int]]:
  """Yields (first row, row after the last) of every shard."""
  for first in range(0, rows, shard_rows):
    yield first, min(first + shard_rows, rows)


def _shard_name(first: int) -> str:
  return f"features_{first:09d}.npy"


def _open_shard(directory: Path, first: int, shape: tuple[int, int], dtype: str) -> np.ndarray:
  """Returns a mapped shard."""
  path = directory / _shard_name(first)
  try:
    shard = np.load(path, mmap_mode="r")
  except (OSError, ValueError) as error:
    raise Pi0RagError(f"{path} is missing or damaged ({error}): build the cache again, it computes what is missing"
                      ) from error
  if shard.shape != shape or shard.dtype != dtype:
    raise Pi0RagError(f"{path} holds {shard.dtype}{list(shard.shape)}, wanted {dtype}{list(shape)}: build the cache "
                      "again")
  return shard
