"""Which format a path holds, and the reader for it."""

import importlib
from pathlib import Path
from typing import Any

import h5py

from pi0rag_jax import lfs
from pi0rag_jax.data.dataset import DEFAULT_FIELDS, Dataset, Fields, expanded
from pi0rag_jax.data.episodes import FORMAT_NAME
from pi0rag_jax.errors import Pi0RagError, unknown_name

# Imported when needed: some need packages of the extra `data`.
READERS = {
  "lerobot": ("pi0rag_jax.data.lerobot", "LerobotDataset"),
  "robomimic": ("pi0rag_jax.data.robomimic", "RobomimicDataset"),
  "aloha": ("pi0rag_jax.data.aloha", "AlohaDataset"),
  "rlds": ("pi0rag_jax.data.rlds", "RldsDataset"),
  "episodes": ("pi0rag_jax.data.own", "OwnDataset"),
  "zarr": ("pi0rag_jax.data.zarr", "ZarrDataset"),
  "cache": ("pi0rag_jax.data.cache", "CachedDataset"),
}
HDF5_SUFFIXES = (".hdf5", ".h5")
CACHE_HEADER = "cache.json"


def open_dataset(
  path: str | Path, format: str | None = None, *, fields: Fields = DEFAULT_FIELDS, skip_bad: bool = False,
  **options: Any,
) -> Dataset:
  """Returns the data set at `path`.

  Args:
    path: a folder, or one HDF5 file.
    format: one of READERS; None finds out.
    fields: which stored field is what.
    skip_bad: damaged episodes are left out and counted in `damaged`, instead of raising.
    options: of the format: `mask` (robomimic), `color` (aloha), `split` (rlds).
  Raises:
    Pi0RagError: nothing there that we read, an option that the format lacks, or damage.
  """
  path = expanded(path)
  if not path.exists():
    raise Pi0RagError(f"no data set at '{path}'")
  format = format or detect_format(path)
  if format not in READERS:
    raise unknown_name("data set format", format, READERS)
  module, name = READERS[format]
  reader = getattr(importlib.import_module(module), name)
  for option in options:
    if option not in reader.options:
      raise unknown_name(f"option of the format {format}", option, reader.options)
  dataset = reader(path, fields=fields, skip_bad=skip_bad, **options)
  if not dataset.num_episodes:
    reasons = "; ".join(list(dataset.damaged.values())[:3])
    raise Pi0RagError(f"'{path}' ({format}) holds no episode that can be read{reasons and f': {reasons}'}")
  return dataset


def detect_format(path: str | Path) -> str:
  """Returns the name of the format at `path`, judged by what files are there."""
  path = expanded(path)
  if (path / "meta" / "info.json").is_file():
    return "lerobot"
  if (path / CACHE_HEADER).is_file():
    return "cache"
  broken = []
  for file in hdf5_files(path):
    try:
      if found := _hdf5_format(file):
        return found
    except Exception as error:  # of h5py: what a broken file raises has no common base
      broken.append(f"'{file}' cannot be opened: {lfs.reason(file, error)}")
  if path.is_dir() and any(not is_hidden(file, path) for file in path.rglob("*.tfrecord*")):
    return "rlds"
  if find_zarr(path):
    return "zarr"
  seen = "; ".join(broken[:3]) or f"formats: {', '.join(sorted(READERS))}"
  raise Pi0RagError(f"'{path}' holds no data set that we know; {seen}")


def hdf5_files(path: Path) -> list[Path]:
  """Returns the HDF5 files at or below `path`, those with numbers in the order of the numbers."""
  if path.is_file():
    return [] if path.suffix == ".zip" else [path]
  # A link to what is not there is damage of an episode, which would be missing silently.
  found = (f for f in path.rglob("*")
           if f.suffix in HDF5_SUFFIXES and (f.is_file() or f.is_symlink()) and not is_hidden(f, path))
  return sorted(found, key=natural_key)


def is_hidden(path: Path, folder: Path) -> bool:
  """Returns whether a path below a folder is an editor's or a file system's: hidden, or a backup of another file."""
  parts = path.relative_to(folder).parts
  return any(part.startswith((".", "~", "__MACOSX")) or part.endswith("~") or part[:1] == part[-1:] == "#"
             for part in parts)


def find_zarr(path: Path) -> Path | None:
  """Returns the replay buffer at a path or one level below it, a folder or a zip file; None where there is none.

  Raises:
    Pi0RagError: there are several.
  """
  if path.is_file():
    return path if path.suffix == ".zip" else None
  below = sorted(file for file in path.iterdir() if not is_hidden(file, path)) if path.is_dir() else []
  found = [f for f in (path, *below) if (f / "meta" / "episode_ends").is_dir() or f.name.endswith(".zarr.zip")]
  if len(found) > 1:
    names = ", ".join(file.name for file in found[:4])
    raise Pi0RagError(f"'{path}' holds several replay buffers, {names}: give the path of one")
  return found[0] if found else None


def natural_key(path: Path | str) -> list:
  """Returns a sorting key under which `demo_2` comes before `demo_10`."""
  pieces, digits = [], ""
  for character in f"{path}\0":
    if character.isdigit():
      digits += character
      continue
    if digits:
      pieces.append((0, int(digits), digits))
      digits = ""
    pieces.append((1, ord(character), character))
  return pieces


def _hdf5_format(path: Path) -> str | None:
  """Returns the format of one HDF5 file, None where it is of none.

  Raises:
    OSError: it cannot be opened.
  """
  with h5py.File(path, "r") as file:
    if file.attrs.get("format") == FORMAT_NAME:
      return "episodes"
    return "robomimic" if "data" in file else "aloha" if "observations" in file else None
