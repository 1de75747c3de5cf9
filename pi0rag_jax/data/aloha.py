"""ALOHA's HDF5 files: one episode each, pictures raw or as padded rows of JPEG bytes."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pi0rag_jax.data import hdf5
from pi0rag_jax.data.dataset import DEFAULT_FIELDS, EpisodeData, Fields, prompt_or_default
from pi0rag_jax.errors import unknown_name

STATE, ACTIONS, PICTURES = "observations/qpos", "action", "observations/images"
# Where recorders of this layout put the instruction, if at all.
TEXTS = ("prompt", "language_instruction", "instruction", "language_raw")
COLORS = ("rgb", "bgr")


class AlohaDataset(hdf5.Hdf5Dataset):
  """Files `episode_<N>.hdf5`, in the order of their numbers.

  ALOHA's own recorder stores no rate, text or colour order: `fields.fps` is 50 by default, the text is the default
  prompt, and `color` is what a decoder gives: `rgb`, or `bgr` where the recorder passed the camera's order on.
  """

  format = "aloha"
  options = ("color",)
  default_fps = 50.0  # ALOHA's recorder
  length_key = ACTIONS

  def __init__(self, path, *, fields: Fields = DEFAULT_FIELDS, skip_bad: bool = False, color: str = "rgb"):
    if color not in COLORS:
      raise unknown_name("colour order", color, COLORS)
    self._color = color
    super().__init__(path, fields=fields, skip_bad=skip_bad)
    self._refuse_versions()

  def _refuse_versions(self) -> None:
    """Raises Pi0RagError where two folders hold the same episodes, by the first file that has one name in both."""
    first: dict[str, Path] = {}
    compared = set()
    for (file, group), length in zip(self._episodes, self.lengths.tolist()):
      other = first.setdefault(f"{length} {file.name}", file)
      if other.parent != file.parent and (other.parent, file.parent) not in compared:
        compared.add((other.parent, file.parent))
        if self._same_numbers(other, file, group):
          raise self._versions(other, file)

  def _episode_groups(self, file: h5py.File) -> list[str]:
    return ["/"]

  def _inspect(self, group: Any) -> hdf5.Facts:
    found = group.get(PICTURES)
    return hdf5.Facts(hdf5.cameras(found) if isinstance(found, h5py.Group) else {})

  def _read_arrays(self, episode: int) -> EpisodeData:
    length = int(self.lengths[episode])
    with self._group(episode) as group:
      arrays = hdf5.numeric_arrays(group, frames=length)
      metadata = {name: hdf5.plain(value) for name, value in group.attrs.items()}
      prompts = self._prompts(group, length)
    arrays.alias("observations/")
    return EpisodeData(
      state=arrays.joined(self.fields.state or STATE, what="state"),
      actions=arrays.joined(self.fields.actions or ACTIONS, what="actions"),
      prompts=[prompt_or_default(text, self.fields.default_prompt) for text in prompts],
      timestamps=np.arange(length) / self.fps,
      extras={name: value for name, value in arrays.items() if not name.startswith("observations/")},
      metadata={"file": self._episodes[episode][0].name, **metadata},
    )

  def _prompts(self, group: Any, frames: int) -> list[str]:
    """Returns the text of every frame: the chosen field's, or one that recorders are known to write."""
    if self.fields.prompt is not None:
      return hdf5.texts_of(group, self.fields.prompt, frames)
    for name in TEXTS:
      item = group.get(name)
      if isinstance(item, h5py.Dataset) and item.dtype.kind in "SO":
        return hdf5.texts_of(group, name, frames)
    return [hdf5.first_text(group.attrs, TEXTS)] * frames

  def _read_camera(self, episode: int, key: str, indices: np.ndarray) -> np.ndarray:
    with self._group(episode) as group:
      frames = hdf5.read_pictures(hdf5.member(group, PICTURES), key, indices)
    return frames[..., ::-1] if self._color == "bgr" else frames
