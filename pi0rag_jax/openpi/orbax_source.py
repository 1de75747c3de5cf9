"""The `params` directory of an openpi checkpoint: an Orbax PyTree item, `{"params": tree}`.

Orbax reads the tree's description and writes checkpoints. The arrays themselves are read through tensorstore, the
library beneath Orbax, piece by piece: Orbax would hold all stored bytes of an array beside the array.
"""

import collections
import itertools
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax import traverse_util

from pi0rag_jax import lfs
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi.digests import DamagedCheckpoint

ITEM = "params"
# flax.nnx stores each array under one more key; openpi writes it, older checkpoints lack it.
VALUE_KEY = "value"
# Arrays are written in pieces of at most this size: a piece is what a reader must hold beside the array.
PIECE_BYTES = 8 * 2**20
# Stored bytes being read ahead; one piece at least, whatever its size.
AHEAD_BYTES = 32 * 2**20
# What a save gathers in memory before it writes a file.
FILE_BYTES = 128 * 2**20
# Nodes of the database that holds all pieces.
INDEX_CACHE_BYTES = 10**7


class OrbaxSource:
  """See `sources.Source`. Errors: Pi0RagError when the directory is damaged or of another kind."""

  def __init__(self, directory: pathlib.Path):
    self.name = str(directory)
    self._directory = directory
    self._context = ts.Context({"cache_pool#index": {"total_bytes_limit": INDEX_CACHE_BYTES}})
    flat = traverse_util.flatten_dict(self._describe())
    self._keys = {"/".join(map(str, key[1:])): key for key in flat}
    if flat and all(key[-1] == VALUE_KEY for key in flat):
      self._keys = {path.removesuffix(f"/{VALUE_KEY}"): key for path, key in self._keys.items()}
    self.shapes = {path: jax.ShapeDtypeStruct(flat[key].shape, flat[key].dtype) for path, key in self._keys.items()}

  def read(self, paths: Sequence[str], dtypes: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
    try:
      return {path: _read_array(self._open(path), dtypes[path]) for path in paths}
    except (ValueError, KeyError, TypeError, OSError) as error:
      raise damaged(self._directory, str(error)) from error

  def _describe(self) -> dict:
    """Returns the tree of the stored arrays' shapes and types."""
    try:
      with local_checkpointer() as checkpointer:
        metadata = checkpointer.metadata(self._directory).item_metadata
      stored = json.loads((self._directory / "_METADATA").read_text())
      self._driver = "zarr3" if stored.get("use_zarr3") else "zarr"
      # Old checkpoints leave out pieces that are all zero; in all others a missing piece is a lost one.
      self._all_stored = bool(stored.get("store_array_data_equal_to_fill_value"))
    except Exception as error:  # of Orbax: what a broken item raises has no common base
      raise damaged(self._directory, str(error)) from error
    if metadata is None:
      raise damaged(self._directory, "Orbax finds no readable item in it; copy it again with all its files")
    tree = dict(metadata.tree)
    if set(tree) != {ITEM}:
      raise Pi0RagError(f"{self.name}: expected one top-level key '{ITEM}', found {sorted(map(str, tree))}")
    return tree

  def _open(self, path: str) -> ts.TensorStore:
    """Returns the stored array of a path; Orbax names it by its keys, joined with dots."""
    name = ".".join(map(str, self._keys[path])) + "/"
    stored = {"driver": "file", "path": f"{self._directory}/"}
    if (self._directory / "manifest.ocdbt").is_file():
      stored = {"driver": "ocdbt", "base": stored, "cache_pool": "cache_pool#index"}
    stored["path"] = stored.get("path", "") + name
    spec = {"driver": self._driver, "kvstore": stored, "fill_missing_data_reads": not self._all_stored}
    return ts.open(spec, context=self._context, open=True, read=True).result()


def write(directory: pathlib.Path, params) -> None:
  """Writes the tree where `directory` does not exist yet; it appears whole or not at all.

  openpi's `restore_params` reads it: `{"params": ...}` with a trailing `value` key.
  """
  flat = traverse_util.flatten_dict(jax.device_get(params))
  tree = traverse_util.unflatten_dict({(*key, VALUE_KEY): np.asarray(array) for key, array in flat.items()})
  pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PIECE_BYTES), {ITEM: tree})
  # Nothing changes the arrays while this call waits, so Orbax needs no copy of them.
  handler = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
  registry = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, handler), (jax.Array, ocp.type_handlers.ArrayHandler()))
  with local_checkpointer(type_handler_registry=registry) as checkpointer:
    args = ocp.args.PyTreeSave({ITEM: tree}, save_args=pieces, ocdbt_target_data_file_size=FILE_BYTES)
    checkpointer.save(directory, args=args)


def _read_array(store: ts.TensorStore, dtype) -> np.ndarray:
  """Returns a stored array, each piece cast into its place as soon as it is there."""
  array = np.empty(store.shape, dtype)
  piece_shape = [step or size for step, size in zip(store.chunk_layout.read_chunk.shape or (), store.shape)]
  piece_bytes = math.prod(piece_shape) * store.dtype.numpy_dtype.itemsize
  reading = collections.deque()
  for piece in _pieces(store.shape, piece_shape):
    reading.append((piece, store[piece].read()))
    if len(reading) * piece_bytes >= AHEAD_BYTES:
      _take(array, reading)
  while reading:
    _take(array, reading)
  return array


def _take(array: np.ndarray, reading: collections.deque) -> None:
  """Puts the oldest piece under way where it belongs; alone in a function, so that nothing keeps the piece."""
  piece, future = reading.popleft()
  array[piece] = future.result()


def _pieces(shape: Sequence[int], piece_shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
  """Yields the index of every stored piece of an array."""
  edges = [[slice(start, min(start + step, size)) for start in range(0, size, step)]
           for size, step in zip(shape, piece_shape)]
  return itertools.product(*edges)


def damaged(directory: pathlib.Path, reason: str) -> DamagedCheckpoint:
  """Returns the error for a directory that cannot be read."""
  if pointer := lfs.pointer_in(directory):
    return DamagedCheckpoint(f"{pointer} {lfs.ADVICE}")
  first_line = reason.splitlines()[0][:300] if reason else "no reason given"
  return DamagedCheckpoint(f"{directory} is damaged or was not copied whole: {first_line}")


def local_checkpointer(**handler_options) -> ocp.Checkpointer:
  """Returns a checkpointer of trees of numpy arrays that this process uses alone, without waiting for other hosts."""
  alone = ocp.options.MultiprocessingOptions()
  if jax.process_count() > 1:
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
      primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}")
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone, **handler_options)
  return ocp.Checkpointer(handler, multiprocessing_options=alone)
