"""PaliGemma's released weights (.npz, big_vision's names), read as the `PaliGemma` part of openpi's tree."""

import contextlib
import pathlib
import zipfile
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax import lfs
from pi0rag_jax.errors import Pi0RagError

URL = "gs://vertex-model-garden-paligemma-us/paligemma/pt_224.npz"
STORED_PREFIX = "params/"
TOWERS = ("img", "llm")
BLOCK_BYTES = 16 * 2**20


class NpzSource:
  """See `sources.Source`. Errors: Pi0RagError when the file is damaged or holds something else."""

  def __init__(self, file: pathlib.Path):
    self.name = str(file)
    self._file = file
    self._members, self.shapes = {}, {}
    with self._archive() as archive:
      for member in archive.namelist():
        path = member.removesuffix(".npy").removeprefix(STORED_PREFIX)
        if path.split("/")[0] not in TOWERS:
          raise Pi0RagError(f"{file} is not PaliGemma's: expected params/img/... and params/llm/..., found {member}")
        with archive.open(member) as stream:
          shape, _, dtype = _read_header(stream)
        self._members[f"PaliGemma/{path}"] = member
        self.shapes[f"PaliGemma/{path}"] = jax.ShapeDtypeStruct(shape, dtype)

  def read(self, paths: Sequence[str], dtypes: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
    with self._archive() as archive:
      return {path: _read_array(archive, self._members[path], dtypes[path]) for path in paths}

  @contextlib.contextmanager
  def _archive(self):
    try:
      with zipfile.ZipFile(self._file) as archive:
        yield archive
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
      raise Pi0RagError(lfs.damaged(self._file, error)) from error


def _read_array(archive: zipfile.ZipFile, member: str, dtype) -> np.ndarray:
  """Returns one array, cast block by block."""
  with archive.open(member) as stream:
    shape, fortran_order, stored = _read_header(stream)
    array = np.empty(shape[::-1] if fortran_order else shape, dtype)
    flat = array.reshape(-1)
    step = BLOCK_BYTES // stored.itemsize
    for start in range(0, flat.size, step):
      block = flat[start:start + step]
      block[...] = np.frombuffer(stream.read(block.size * stored.itemsize), stored)
  return array.T if fortran_order else array


def _read_header(stream) -> tuple[tuple[int, ...], bool, np.dtype]:
  """Returns (shape, whether in Fortran order, type) of an .npy stream."""
  version = np.lib.format.read_magic(stream)
  read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
  shape, fortran_order, dtype = read(stream)
  # numpy has no bfloat16 of its own and writes it as two bytes without a meaning.
  return shape, fortran_order, jnp.dtype(jnp.bfloat16) if dtype.kind == "V" and dtype.itemsize == 2 else dtype
