"""Reading a stored parameter tree with little more memory than the result needs.

A source knows the shapes of all its arrays and reads a few at a time. Each group is cast while it is read and placed
before the next one is read, the largest arrays first: the stored form of the largest one is in memory while nothing
else is, so that the peak is that of the result plus one array.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from pi0rag_jax.errors import Pi0RagError

# Stored bytes that are read at once; a larger array is a group of its own.
GROUP_BYTES = 256 * 2**20


class Source(Protocol):
  """A stored parameter tree: openpi's '/'-joined paths, whatever the file names are."""

  name: str  # for messages

  @property
  def shapes(self) -> Mapping[str, jax.ShapeDtypeStruct]:
    """What is stored."""
    ...

  def read(self, paths: Sequence[str], dtypes: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
    """Returns the arrays of `paths`, cast to `dtypes` while they are read."""
    ...


def cast_dtype(stored, dtype) -> np.dtype:
  """Returns the type an array is read as: `dtype` where that is given and both are floating, else the stored one."""
  if dtype is None or not jnp.issubdtype(stored, jnp.floating) or not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
    return jnp.dtype(stored)
  return jnp.dtype(dtype)


def read_arrays(source: Source, dtypes: Mapping[str, np.dtype], placement=None) -> dict[str, Any]:
  """Returns path -> array for the paths of `dtypes`, read group by group.

  Args:
    placement: None for numpy arrays; else a device, a sharding, or a nested dict of them like the parameters'.
  """
  flat = {}
  for paths in groups(source.shapes, dtypes):
    arrays = source.read(paths, dtypes)
    for path in paths:
      flat[path] = place(arrays.pop(path), path, placement)
  return flat


def groups(shapes: Mapping[str, jax.ShapeDtypeStruct], paths) -> Iterator[list[str]]:
  """Yields the paths, those of the largest arrays first, in groups of at most GROUP_BYTES or of one array."""
  group, total = [], 0
  for path in sorted(paths, key=lambda path: (-_stored_bytes(shapes[path]), path)):
    size = _stored_bytes(shapes[path])
    if group and total + size > GROUP_BYTES:
      yield group
      group, total = [], 0
    group.append(path)
    total += size
  if group:
    yield group


def place(array: np.ndarray, path: str, placement):
  """Returns the array where it shall live; a copy to a device has ended when this returns."""
  if isinstance(placement, Mapping):
    placement = traverse_util.flatten_dict(placement, sep="/").get(path)
    if placement is None:
      raise Pi0RagError(f"placement has no entry for {path}: give one for every array, or one for all")
  if placement is None:
    return array
  if not isinstance(placement, jax.sharding.Sharding):
    return jax.block_until_ready(jax.device_put(array, placement))
  # Copies only what each local device holds, also where other processes have the rest.
  return jax.block_until_ready(jax.make_array_from_callback(array.shape, placement, lambda index: array[index]))


def both_kinds(missing: Sequence[str], unexpected: Sequence[str]) -> list[str]:
  """Returns all problems, of both kinds in turn: names that differ show best beside one another."""
  pairs = itertools.zip_longest(missing, unexpected)
  return [text for pair in pairs for text in pair if text is not None]


def _stored_bytes(shape: jax.ShapeDtypeStruct) -> int:
  return int(np.prod(shape.shape, dtype=np.int64)) * jnp.dtype(shape.dtype).itemsize
