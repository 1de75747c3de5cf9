"""The project's own HDF5 episodes behind the interface of all formats; `data/episodes.py` describes the files."""

from typing import Any

import h5py
import numpy as np

from pi0rag_jax.data import checks, hdf5
from pi0rag_jax.data.dataset import DEFAULT_FIELDS, EpisodeData, Fields, prompt_or_default
from pi0rag_jax.data.episodes import check_format
from pi0rag_jax.data.validation import BY

STATE, ACTIONS, TIMES = "state", "actions", "timestamps"


class OwnDataset(hdf5.Hdf5Dataset):
  """Every episode of every file, in the order of the file names.

  The actions are the executed ones; `Fields(actions="label")` takes the clean labels beside them that a recorder was
  given, `Fields(actions="action_chunks")` the chunks of labels of the simulator's episodes. Who acted is `by` in the
  extras, how a recorded episode ended is in the metadata: `success`, `failure`, `note`.
  """

  format = "episodes"
  default_fps = 20.0  # the simulator's control rate; version 1 does not always say
  length_key = STATE
  facts_per_episode = True

  def __init__(self, path, *, fields: Fields = DEFAULT_FIELDS, skip_bad: bool = False):
    super().__init__(path, fields=fields, skip_bad=skip_bad)

  def _episode_groups(self, file: h5py.File) -> list[str]:
    check_format(file.filename, file.attrs)
    return sorted(file.keys())

  def _inspect(self, group: Any) -> hdf5.Facts:
    fps = group.attrs.get("fps")
    return hdf5.Facts(hdf5.cameras(hdf5.member(group, "image")), None if not fps else checks.number(
      fps, f"'{group.file.filename}': fps", low=0, high=checks.MAX_FPS))

  def _read_arrays(self, episode: int) -> EpisodeData:
    length = int(self.lengths[episode])
    with self._group(episode) as group:
      arrays = hdf5.numeric_arrays(group, frames=length)
      said = self.fields.prompt is not None or "prompt" in group.attrs
      prompts = hdf5.texts_of(group, self.fields.prompt or "prompt", length) if said else [""] * length
      attributes = {name: hdf5.plain(value) for name, value in group.attrs.items() if name != "metadata"}
      metadata = hdf5.json_of(group.attrs, "metadata")
      if BY in group:
        arrays.add(BY, lambda: np.asarray(hdf5.texts_of(group, BY, length)))
    times = arrays.joined(TIMES, what="time")[:, 0] if TIMES in arrays | arrays.unread else None
    return EpisodeData(
      state=arrays.joined(self.fields.state or STATE, what="state"),
      actions=arrays.joined(self.fields.actions or ACTIONS, what="actions"),
      prompts=[prompt_or_default(text, self.fields.default_prompt) for text in prompts],
      timestamps=np.arange(length) / self.episode_fps(episode) if times is None else np.asarray(times, np.float64),
      extras={name: value for name, value in arrays.items() if name not in (STATE, ACTIONS, TIMES)},
      metadata={**attributes, **metadata},
    )

  def _read_camera(self, episode: int, key: str, indices: np.ndarray) -> np.ndarray:
    with self._group(episode) as group:
      return hdf5.read_pictures(hdf5.member(group, "image"), key, indices)
