"""The project's episode files: HDF5, each episode one group, each file either whole or absent.

A data set is a folder of files. HDF5 cannot survive a kill in the middle of a write, so nothing is ever added to
an existing file: a file is written under another name, synchronized and renamed. Appending is adding a file.

Group `episode_<seed>`, with `F` frames: `image/<camera>` uint8[F, S, S, 3], `state` float32[F, P], `actions`
float32[F, A] (executed), `action_chunks` float32[F, T, A] (what the expert would do from that frame's state),
`privileged/<name>` float32[F, ...] (simulator truth, for auxiliary losses only); attributes as in `Episode`.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pi0rag_jax.data.dataset import expanded
from pi0rag_jax.errors import Pi0RagError

FORMAT_NAME = "pi0rag_jax-episodes"
FORMAT_VERSION = 1
# Version 2 is what `data/recorder.py` writes: other fields, read by `data/own.py`.
READABLE_VERSIONS = (1, 2)
SUFFIX = ".h5"
# gzip 1 halves ray-cast images at ~1 ms a frame; frames are read in blocks, so a chunk holds several.
IMAGE_CHUNK_FRAMES = 16
GZIP_LEVEL = 1
_ATTRIBUTES = ("prompt", "task", "condition", "renderer", "seed", "success")
# What only judged demonstrations say, and what only recorders do that leave out frames.
_FLAW, _FPS = "flaw", "fps"
CLEAN = "clean"  # the flaw of a demonstration that has none


@dataclasses.dataclass(frozen=True)
class Episode:
  """One recorded episode of F frames; actions in the simulator's units, never normalized."""

  images: Mapping[str, np.ndarray]  # camera -> uint8[F, S, S, 3]
  state: np.ndarray  # float32[F, P]
  actions: np.ndarray  # float32[F, A], executed in the tick that starts at the frame
  action_chunks: np.ndarray  # float32[F, T, A], the clean label from the frame's state
  privileged: Mapping[str, np.ndarray]  # name -> float32[F, ...]
  prompt: str
  task: str
  condition: str
  renderer: str
  seed: int
  success: bool
  flaw: str = ""  # of a demonstration that was judged: CLEAN, or what is wrong with it; "" where nobody judged
  fps: float = 0.0  # frames per second; 0 where the recorder did not say

  def __len__(self) -> int:
    return self.state.shape[0]

  def __post_init__(self):
    arrays = {"state": self.state, "actions": self.actions, "action_chunks": self.action_chunks}
    arrays |= {f"image/{name}": value for name, value in self.images.items()}
    arrays |= {f"privileged/{name}": value for name, value in self.privileged.items()}
    lengths = {name: value.shape[0] for name, value in arrays.items()}
    if len(set(lengths.values())) != 1:
      raise Pi0RagError(f"episode {self.seed}: every array needs one entry per frame, lengths are {lengths}")


def write_episodes(path: str | Path, episodes: Iterable[Episode]) -> Path:
  """Returns `path` after writing the episodes there as one file, all or nothing.

  Raises:
    Pi0RagError: the file exists (files are never changed), or a seed occurs twice.
  """
  path = expanded(path)
  if path.exists():
    raise Pi0RagError(f"'{path}' exists; episode files are never changed: write the new episodes to another file")
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
  try:
    with h5py.File(temporary, "w") as file:
      file.attrs["format"] = FORMAT_NAME
      file.attrs["version"] = FORMAT_VERSION
      for episode in episodes:
        _write_group(file, episode)
    with open(temporary, "rb") as handle:
      os.fsync(handle.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  return path


def read_episodes(path: str | Path) -> Iterator[Episode]:
  """Yields the episodes of one file, by seed.

  Raises:
    Pi0RagError: no such file, truncated or no HDF5, of another project or version, or a group lacks an entry.
  """
  path = expanded(path)
  if not path.is_file():
    raise Pi0RagError(f"no episode file '{path}'")
  try:
    file = h5py.File(path, "r")
  except OSError as error:
    raise Pi0RagError(f"'{path}' is no whole HDF5 file ({error}): remove it and collect it again") from error
  with file:
    if check_format(path, file.attrs) != FORMAT_VERSION:
      raise Pi0RagError(f"'{path}' holds recorded episodes (version 2): read them with data.formats.open_dataset")
    for name in sorted(file):
      yield _read_group(path, _group(file, name))


def episode_path(folder: str | Path, seed: int) -> Path:
  """Returns where the collector puts the episode of `seed`."""
  return Path(folder) / f"{group_name(seed)}{SUFFIX}"


def group_name(seed: int) -> str:
  """Returns the name of the group that holds the episode of `seed` in its file."""
  return f"episode_{seed:06d}"


def _write_group(file: h5py.File, episode: Episode) -> None:
  """Writes one episode as a group of `file`."""
  name = group_name(episode.seed)
  if name in file:
    raise Pi0RagError(f"seed {episode.seed} occurs twice")
  group = file.create_group(name)
  for camera, images in episode.images.items():
    chunks = (min(IMAGE_CHUNK_FRAMES, len(images)), *images.shape[1:])
    group.create_dataset(
      f"image/{camera}", data=images, chunks=chunks, compression="gzip", compression_opts=GZIP_LEVEL
    )
  for key in ("state", "actions", "action_chunks"):
    group.create_dataset(key, data=np.asarray(getattr(episode, key), np.float32))
  group.create_group("privileged")
  for key, value in episode.privileged.items():
    group.create_dataset(f"privileged/{key}", data=np.asarray(value, np.float32))
  for key in (*_ATTRIBUTES, *(key for key in (_FLAW, _FPS) if getattr(episode, key))):
    group.attrs[key] = getattr(episode, key)


def _read_group(path: Path, group: h5py.Group) -> Episode:
  """Returns the episode in `group`."""
  missing = [key for key in ("image", "state", "actions", "action_chunks", "privileged") if key not in group]
  missing += [key for key in _ATTRIBUTES if key not in group.attrs]
  if missing:
    raise Pi0RagError(f"'{path}', group '{group.name}' lacks {', '.join(missing)}: not a whole episode")
  attributes: dict[str, Any] = {key: group.attrs[key] for key in _ATTRIBUTES}
  try:
    return Episode(
      images=_arrays(_group(group, "image")),
      state=_array(group, "state"),
      actions=_array(group, "actions"),
      action_chunks=_array(group, "action_chunks"),
      privileged=_arrays(_group(group, "privileged")),
      seed=int(attributes["seed"]),
      success=bool(attributes["success"]),
      flaw=str(group.attrs.get(_FLAW, "")),
      fps=float(group.attrs.get(_FPS, 0.0)),
      **{key: str(attributes[key]) for key in ("prompt", "task", "condition", "renderer")},
    )
  except OSError as error:
    raise Pi0RagError(f"'{path}' is damaged in '{group.name}' ({error}): remove it, collect it again") from error


def _group(parent: h5py.Group, name: str) -> h5py.Group:
  """Returns a group in `parent`."""
  item = parent[name]
  if not isinstance(item, h5py.Group):
    raise Pi0RagError(f"'{item.name}' in '{parent.file.filename}' is no group: not a whole episode")
  return item


def _array(parent: h5py.Group, name: str) -> np.ndarray:
  """Returns a whole array in `parent`."""
  item = parent[name]
  if not isinstance(item, h5py.Dataset):
    raise Pi0RagError(f"'{item.name}' in '{parent.file.filename}' is no array: not a whole episode")
  return item[()]


def _arrays(group: h5py.Group) -> dict[str, np.ndarray]:
  """Returns every array of `group` by its name."""
  # Iterating over the group itself is declared to give names that may be None.
  return {name: _array(group, name) for name in group.keys()}  # noqa: SIM118


def check_format(path: str | Path, attributes: h5py.AttributeManager) -> int:
  """Returns the version; raises if the file is not of this project or of a version this code cannot read."""
  found = attributes.get("format")
  if found != FORMAT_NAME:
    raise Pi0RagError(f"'{path}' is another project's HDF5 file (format {found!r}, expected '{FORMAT_NAME}')")
  version = int(attributes.get("version", -1))
  if version not in READABLE_VERSIONS:
    raise Pi0RagError(f"'{path}' has format version {version}; this code reads versions 1 and 2")
  return version
