"""ALOHA's HDF5 files: one episode each, pictures raw or as padded rows of JPEG bytes."""

import io
from typing import Any

import h5py
import numpy as np
from PIL import Image

from pi0rag_jax.data import hdf5
from pi0rag_jax.data.dataset import DEFAULT_FIELDS, EpisodeData, Fields, choose_cameras, side_by_side
from pi0rag_jax.errors import unknown_name

STATE, ACTIONS, PICTURES = "observations/qpos", "action", "observations/images"
DEFAULT_FPS = 50.0  # ALOHA's recorder; the files do not say
COLORS = ("rgb", "bgr")


class AlohaDataset(hdf5.Hdf5Dataset):
  """Files `episode_<N>.hdf5`, in the order of their numbers.

  Rate, text and colour order are in no file: `fields.fps` is 50 by default, the text is the folder's name with
  spaces, and `color` is what a decoder gives: `rgb`, or `bgr` where the recorder passed the camera's order on.
  """

  format = "aloha"
  options = ("color",)
  length_key = ACTIONS

  def __init__(self, path, *, fields: Fields = DEFAULT_FIELDS, skip_bad: bool = False, color: str = "rgb"):
    if color not in COLORS:
      raise unknown_name("colour order", color, COLORS)
    self._color, self.fps = color, float(fields.fps or DEFAULT_FPS)
    super().__init__(path, fields=fields, skip_bad=skip_bad)

  def _episode_groups(self, file: h5py.File) -> list[str]:
    return ["/"]

  def _inspect(self, group: Any) -> None:
    self.camera_keys = choose_cameras(list(group[PICTURES].keys()) if PICTURES in group else [], self.fields.cameras)

  def _read_arrays(self, episode: int) -> EpisodeData:
    length = int(self.lengths[episode])
    with self._group(episode) as group:
      arrays = hdf5.numeric_arrays(group, frames=length)
      metadata = {name: value.item() if isinstance(value, np.generic) else value for name, value in group.attrs.items()}
      prompt = None if self.fields.prompt is None else hdf5.text_of(group, self.fields.prompt)
    path = self._episodes[episode][0]
    text = prompt or self.fields.default_prompt or path.parent.name.replace("_", " ")
    short = {name.removeprefix("observations/"): value for name, value in arrays.items()}
    return EpisodeData(
      state=side_by_side(short | arrays, self.fields.state or STATE, what="state"),
      actions=side_by_side(short | arrays, self.fields.actions or ACTIONS, what="actions"),
      prompts=[text] * length,
      timestamps=np.arange(length) / self.fps,
      extras=short,
      metadata={"file": path.name, **metadata},
    )

  def _read_camera(self, episode: int, key: str, indices: np.ndarray) -> np.ndarray:
    with self._group(episode) as group:
      rows = hdf5.read_rows(group[f"{PICTURES}/{key}"], indices)
    if rows.ndim == 4:
      frames = hdf5.as_pictures(rows)
    else:
      frames = np.stack([_decode(row) for row in rows]) if len(rows) else np.zeros((0, 1, 1, 3), np.uint8)
    return frames[..., ::-1] if self._color == "bgr" else frames


def _decode(row: np.ndarray) -> np.ndarray:
  """Returns uint8[H, W, 3] of JPEG bytes; the decoder stops before the zeros that pad the row."""
  with Image.open(io.BytesIO(np.asarray(row).astype(np.uint8).tobytes())) as image:
    return np.asarray(image.convert("RGB"))
