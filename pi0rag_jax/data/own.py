"""The project's own HDF5 episodes behind the interface of all formats; `data/episodes.py` describes the files."""

import json
from typing import Any

import h5py
import numpy as np

from pi0rag_jax.data import hdf5
from pi0rag_jax.data.dataset import DEFAULT_FIELDS, EpisodeData, Fields, choose_cameras, side_by_side
from pi0rag_jax.data.episodes import check_format

STATE, ACTIONS = "state", "actions"
DEFAULT_FPS = 20.0  # the simulator's control rate; version 1 does not always say


class OwnDataset(hdf5.Hdf5Dataset):
  """Every episode of every file, in the order of the file names.

  The actions are the executed ones; `Fields(actions="action_chunks")` takes the clean label chunks instead.
  """

  format = "episodes"
  length_key = STATE

  def __init__(self, path, *, fields: Fields = DEFAULT_FIELDS, skip_bad: bool = False):
    self.fps = float(fields.fps or DEFAULT_FPS)
    super().__init__(path, fields=fields, skip_bad=skip_bad)

  def _episode_groups(self, file: h5py.File) -> list[str]:
    check_format(file.filename, file.attrs)
    return sorted(file.keys())

  def _inspect(self, group: Any) -> None:
    said = self.fields.fps or group.attrs.get("fps")
    self.fps, self.says_fps = float(said or DEFAULT_FPS), bool(said)
    self.camera_keys = choose_cameras(list(group["image"].keys()), self.fields.cameras)

  def _read_arrays(self, episode: int) -> EpisodeData:
    length = int(self.lengths[episode])
    with self._group(episode) as group:
      arrays = hdf5.numeric_arrays(group, frames=length)
      prompt = hdf5.text_of(group, self.fields.prompt or "prompt")
      attributes = {name: _plain(value) for name, value in group.attrs.items()}
    times = arrays.get("timestamps", np.arange(length) / self.fps)
    return EpisodeData(
      state=side_by_side(arrays, self.fields.state or STATE, what="state"),
      actions=side_by_side(arrays, self.fields.actions or ACTIONS, what="actions"),
      prompts=[prompt] * length,
      timestamps=np.asarray(times, np.float64),
      extras={name: value for name, value in arrays.items() if name not in (STATE, ACTIONS, "timestamps")},
      metadata=attributes | json.loads(attributes.pop("metadata", "{}")),
    )

  def _read_camera(self, episode: int, key: str, indices: np.ndarray) -> np.ndarray:
    with self._group(episode) as group:
      return hdf5.as_pictures(hdf5.read_rows(group[f"image/{key}"], indices))


def _plain(value):
  return value.item() if isinstance(value, np.generic) else value
