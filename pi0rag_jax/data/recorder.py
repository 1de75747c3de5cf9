"""Recording on a robot: a writer that takes frames one by one, refuses what is wrong, and leaves only whole episodes.

Every episode is one file of the project's HDF5 format, version 2: attributes `format` and `version`, and one group
`episode_<number>` with `image/<camera>` uint8[F, H, W, 3], `state` float32[F, P], `actions` float32[F, A] (executed
from the frame on), `timestamps` float64[F] in s, where given `label` float32[F, A] (the action that would have been
right) and `by` (who acted, F texts), and attributes `prompt`, `fps`, `success`, `failure`, `note`, `category` and
`metadata` (JSON). `schema.json` in the folder says what all of them have in common. `open_dataset` reads the folder.
"""

import dataclasses
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pi0rag_jax.data.dataset import EpisodeData, expanded
from pi0rag_jax.data.episodes import FORMAT_NAME, GZIP_LEVEL, IMAGE_CHUNK_FRAMES, SUFFIX
from pi0rag_jax.data.validation import (
  ACTORS,
  BY,
  LABEL,
  Schema,
  category_problems,
  number_problems,
  outcome_problems,
  picture_problems,
)
from pi0rag_jax.errors import Pi0RagError

RECORDED_VERSION = 2


@dataclasses.dataclass(frozen=True)
class _Frame:
  images: dict[str, np.ndarray]
  state_P: np.ndarray
  action_A: np.ndarray
  time_s: float
  label_A: np.ndarray | None
  by: str


class EpisodeWriter:
  """Collects the frames of one episode after the other.

  ```
  writer = EpisodeWriter("recordings", schema)
  writer.add_frame(images={"front": picture}, state=joints, action=command, time_s=now)  # and so on
  writer.save(prompt="open the drawer", success=True)
  ```
  """

  def __init__(self, folder: str | Path, schema: Schema):
    """Makes the folder where it is missing.

    Raises:
      Pi0RagError: it holds episodes of another schema.
    """
    self.folder, self.schema = expanded(folder), schema
    self.folder.mkdir(parents=True, exist_ok=True)
    schema.save(self.folder)
    self._frames: list[_Frame] = []

  def __len__(self) -> int:
    return len(self._frames)

  def add_frame(
    self, *, images: Mapping[str, Any], state: Any, action: Any, time_s: float, label: Any = None, by: str | None = None
  ) -> None:
    """Adds one frame.

    Args:
      images: camera -> uint8[H, W, 3], RGB; copied, unless nobody can write to them.
      state: float[P].
      action: float[A], executed from now on.
      time_s: s, from any start; it rises.
      label: float[A], the action that would have been right, of every frame or of none; `Fields(actions="label")`
        trains on it.
      by: who acted, one of ACTORS; None where nobody says.
    Raises:
      Pi0RagError: the frame does not fit the schema; the episode goes on without it.
    """
    pictures = {name: np.array(image, copy=image.flags.writeable if isinstance(image, np.ndarray) else True)
                for name, image in images.items()}
    state_P, action_A = np.array(state, np.float32).reshape(-1), np.array(action, np.float32).reshape(-1)
    label_A = None if label is None else np.array(label, np.float32).reshape(-1)
    times = [frame.time_s for frame in self._frames[-1:]] + [float(time_s)]
    repeat = lambda values: np.stack([values] * len(times))  # noqa: E731
    extras = {LABEL: label_A, BY: None if by is None else np.asarray(by)}
    extras = {name: repeat(value) for name, value in extras.items() if value is not None}
    data = EpisodeData(repeat(state_P), repeat(action_A), ["-"] * len(times), np.asarray(times), extras)
    problems = [text for text in number_problems(data, self.schema) if not text.startswith("the category")]
    problems += picture_problems({name: picture[None] for name, picture in pictures.items()}, self.schema)
    if self._frames and (label is None) != (self._frames[-1].label_A is None):
      problems.append("a label comes with every frame or with none, "
                      f"the frames before have {'none' if label is not None else 'one'}")
    if problems:
      raise Pi0RagError(f"frame {len(self)} is refused: {'; '.join(problems)}")
    self._frames.append(_Frame(pictures, state_P, action_A, float(time_s), label_A, by or ""))

  def discard(self) -> None:
    """Forgets the frames since the last episode."""
    self._frames.clear()

  def save(
    self, *, prompt: str, success: bool | None = None, failure: str | None = None, note: str | None = None,
    category: str | None = None, metadata: Mapping[str, Any] | None = None,
  ) -> Path:
    """Returns the new episode's file, on the disk; the next frame starts another episode.

    Args:
      prompt: what the robot was told.
      success: None where nobody judged it.
      failure: which kind, such as `dropped`; not of a success, and it says that it is none.
      note: anything else about how it ended.
      category: one of the schema's, where it has any.
      metadata: what JSON can hold.
    Raises:
      Pi0RagError: the episode is not valid; its frames are kept, so that it can be saved with what was missing.
    """
    if not self._frames:
      raise Pi0RagError("there are no frames to save")
    if failure is not None and success is None:
      success = False
    problems = category_problems(category, self.schema) + ([] if prompt.strip() else ["the language is empty"])
    problems += outcome_problems({"success": success, "failure": failure})
    if problems:
      raise Pi0RagError(f"the episode is refused: {'; '.join(problems)}")
    attributes = {"prompt": prompt, "fps": self.schema.fps, "metadata": json.dumps(dict(metadata or {}))}
    attributes |= {} if success is None else {"success": bool(success)}
    said = {"failure": failure, "note": note, "category": category}
    attributes |= {name: str(value) for name, value in said.items() if value is not None}
    path = self._write(attributes)
    self.discard()
    return path

  def _write(self, attributes: Mapping[str, Any]) -> Path:
    """Returns the file's path; it appears whole, under a number that no other writer has taken."""
    temporary = self.folder / f"recording.tmp-{uuid.uuid4().hex}"
    taken = (file.stem.removeprefix("episode_") for file in self.folder.glob(f"episode_*{SUFFIX}"))
    number = 1 + max((int(name) for name in taken if name.isdecimal()), default=-1)
    try:
      while True:
        with h5py.File(temporary, "w") as file:
          file.attrs.update(format=FORMAT_NAME, version=RECORDED_VERSION)
          self._write_group(file.create_group(f"episode_{number:06d}"), attributes)
        with open(temporary, "rb") as handle:
          os.fsync(handle.fileno())
        path = self.folder / f"episode_{number:06d}{SUFFIX}"
        try:
          os.link(temporary, path)  # unlike a renaming, this does not replace
          return path
        except FileExistsError:
          number += 1
    finally:
      temporary.unlink(missing_ok=True)

  def _write_group(self, group: h5py.Group, attributes: Mapping[str, Any]) -> None:
    for camera, (height, width) in self.schema.cameras.items():
      chunks = (min(IMAGE_CHUNK_FRAMES, len(self)), height, width, 3)
      stored = group.create_dataset(f"image/{camera}", (len(self), height, width, 3), np.uint8, chunks=chunks,
                                    compression="gzip", compression_opts=GZIP_LEVEL)
      for first in range(0, len(self), IMAGE_CHUNK_FRAMES):
        block = [frame.images[camera] for frame in self._frames[first : first + IMAGE_CHUNK_FRAMES]]
        stored[first : first + len(block)] = np.stack(block)
    group.create_dataset("state", data=np.stack([frame.state_P for frame in self._frames]))
    group.create_dataset("actions", data=np.stack([frame.action_A for frame in self._frames]))
    group.create_dataset("timestamps", data=np.asarray([frame.time_s for frame in self._frames], np.float64))
    labels = [frame.label_A for frame in self._frames if frame.label_A is not None]
    if labels:
      group.create_dataset(LABEL, data=np.stack(labels))
    if any(frame.by for frame in self._frames):
      group.create_dataset(BY, data=np.asarray([frame.by for frame in self._frames], f"S{max(map(len, ACTORS))}"))
    group.attrs.update(attributes)
