"""openpi's normalization statistics: `assets/<asset id>/norm_stats.json` of a checkpoint."""

import json
import os
import pathlib

import numpy as np

from pi0rag_jax import files, lfs
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi import download

ASSETS_DIR = "assets"
FILE_NAME = "norm_stats.json"
REQUIRED = ("mean", "std")
# Absent or null where only z-scores were computed.
OPTIONAL = ("q01", "q99")
MAX_BYTES = 64 * 2**20
LARGEST = 3.4e38  # of float32, in which policies compute


def load_norm_stats(path, asset_id: str) -> dict[str, dict[str, np.ndarray | None]]:
  """Returns {`state`, `actions`: {`mean`, `std`, `q01`, `q99`: float64[P] or None}} of a checkpoint.

  Args:
    path: the checkpoint directory, also at a gs:// address, or the `assets` directory within it.
    asset_id: robot or data set name, such as `trossen` or `physical-intelligence/libero`.
  """
  directory = download.local_checkpoint(path)
  if not directory.is_dir():
    raise Pi0RagError(f"no checkpoint directory at {directory}")
  assets = _assets_directory(directory)
  if not assets.is_dir():
    raise Pi0RagError(f"{directory} has no {ASSETS_DIR}/, which holds the statistics beside params/: expected "
                      f"{assets / asset_id / FILE_NAME}")
  file = assets / asset_id / FILE_NAME
  if not file.is_file():
    present = sorted(str(f.parent.relative_to(assets)) for f in assets.rglob(FILE_NAME))
    raise Pi0RagError(f"no norm stats for asset '{asset_id}' in {assets}; present: {', '.join(present) or None}")
  try:
    if file.stat().st_size > MAX_BYTES:
      raise Pi0RagError(f"{file} has {file.stat().st_size} bytes, read are up to {MAX_BYTES}")
    groups = json.loads(file.read_text())["norm_stats"]
    return {name: _read_group(group, f"{file}: {name}") for name, group in groups.items()}
  except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
    reason = lfs.reason(file, repr(error))
    raise Pi0RagError(f"{file}: expected openpi's {{'norm_stats': {{...}}}} ({reason})") from error


def save_norm_stats(path, asset_id: str, stats) -> None:
  """Writes statistics, in the form `load_norm_stats` returns, where openpi looks; the file is replaced atomically."""
  groups = {
    name: {key: None if group.get(key) is None else np.asarray(group[key], np.float64).tolist()
           for key in REQUIRED + OPTIONAL}
    for name, group in stats.items()
  }
  file = _assets_directory(path) / asset_id / FILE_NAME
  files.write_text(file, json.dumps({"norm_stats": groups}, indent=2))


def _assets_directory(path) -> pathlib.Path:
  path = pathlib.Path(os.path.expanduser(path))
  return path if path.name == ASSETS_DIR else path / ASSETS_DIR


def _read_group(group, where: str) -> dict[str, np.ndarray | None]:
  """Returns one group's arrays, of one length."""
  missing = [key for key in REQUIRED if group.get(key) is None]
  if missing:
    raise Pi0RagError(f"{where} lacks {', '.join(missing)}")
  arrays = {key: None if group.get(key) is None else _read_array(group[key], f"{where}, {key}")
            for key in REQUIRED + OPTIONAL}
  shapes = {key: array.shape for key, array in arrays.items() if array is not None}
  if len(set(shapes.values())) != 1:
    raise Pi0RagError(f"{where} has arrays of different shapes: {shapes}")
  std, q01, q99 = (arrays[key] for key in ("std", "q01", "q99"))
  if std is not None and (std < 0).any():
    raise Pi0RagError(f"{where}, std[{np.argmin(std)}] is {std.min():g}, allowed: 0 or more")
  if q01 is not None and q99 is not None and (q01 > q99).any():
    dim = int(np.argmax(q01 - q99))
    raise Pi0RagError(f"{where}: q01[{dim}] is {q01.flat[dim]:g}, above q99[{dim}], {q99.flat[dim]:g}")
  return arrays


def _read_array(values, where: str) -> np.ndarray:
  """Returns a list of finite numbers as float64[...]."""
  if not isinstance(values, list):
    raise Pi0RagError(f"{where} is {repr(values)[:80]}, expected a list of numbers")
  flat = np.asarray(values, object).ravel()
  for place, value in enumerate(flat.tolist()):
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) < LARGEST:
      raise Pi0RagError(f"{where}[{place}] is {repr(value)[:80]}, allowed: finite numbers (in a norm_stats.json that "
                        "a NaN or a null in the data has spoilt, all of them must be computed again)")
  return np.asarray(values, np.float64)
