"""robomimic's HDF5 files, and those of robodiff (Diffusion Policy) and LIBERO, which have the same layout."""

import json
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from pi0rag_jax.data import hdf5
from pi0rag_jax.data.dataset import DEFAULT_FIELDS, EpisodeData, Fields, choose_cameras, side_by_side
from pi0rag_jax.data.formats import natural_key
from pi0rag_jax.errors import unknown_name

ACTIONS = "actions"
# The proprioception of robosuite's robots, as Diffusion Policy and robomimic's own configurations choose it.
STATE_PARTS = ("_eef_pos", "_eef_quat", "_gripper_qpos")
DEFAULT_FPS = 20.0  # robosuite's control_freq


class RobomimicDataset(hdf5.Hdf5Dataset):
  """Groups `data/demo_<i>`, in the order of their numbers.

  The state is the position, orientation and gripper of every robot, or all observed numbers where there are none.
  `mask` names one of the file's filter keys, such as `train`.
  """

  format = "robomimic"
  options = ("mask",)
  length_key = ACTIONS

  def __init__(self, path, *, fields: Fields = DEFAULT_FIELDS, skip_bad: bool = False, mask: str | None = None):
    self._mask, self._language, self.fps = mask, "", float(fields.fps or DEFAULT_FPS)
    super().__init__(path, fields=fields, skip_bad=skip_bad)

  def _episode_groups(self, file: h5py.File) -> list[str]:
    names = sorted(file["data"].keys(), key=natural_key)
    if self._mask is not None:
      masks = list(file["mask"].keys()) if "mask" in file else []
      if self._mask not in masks:
        raise unknown_name(f"mask of '{file.filename}'", self._mask, masks)
      chosen = {hdf5.as_text(name) for name in hdf5.stored(file, f"mask/{self._mask}")[()]}
      names = [name for name in names if name in chosen]
    return [f"data/{name}" for name in names]

  def _inspect(self, group: Any) -> None:
    env = json.loads(hdf5.as_text(group.parent.attrs.get("env_args", "{}")))
    self._language = _language(group.parent.attrs) or str(env.get("env_name", ""))
    self.fps = float(self.fields.fps or env.get("env_kwargs", {}).get("control_freq") or DEFAULT_FPS)
    pictures = [name for name, item in group["obs"].items() if hdf5.is_picture(item) and item.ndim == 4]
    self.camera_keys = choose_cameras(pictures, self.fields.cameras)

  def _read_arrays(self, episode: int) -> EpisodeData:
    length = int(self.lengths[episode])
    with self._group(episode) as group:
      arrays = hdf5.numeric_arrays(group, frames=length)
      metadata = {name: _plain(value) for name, value in group.attrs.items() if name != "model_file"}
      prompt = self._prompt(group)
    observed = {name.removeprefix("obs/"): value for name, value in arrays.items() if name.startswith("obs/")}
    state = self.fields.state or _default_state(observed)
    return EpisodeData(
      state=side_by_side(observed | arrays, state, what="state"),
      actions=side_by_side(arrays, self.fields.actions or ACTIONS, what="actions"),
      prompts=[prompt] * length,
      timestamps=np.arange(length) / self.fps,
      extras=arrays,
      metadata={"demo": self._episodes[episode][1].removeprefix("data/"), **metadata},
    )

  def _prompt(self, group: Any) -> str:
    """Returns the text of the episode: a chosen field, the episode's own, the file's, or the environment's name."""
    if self.fields.prompt is not None:
      return hdf5.text_of(group, self.fields.prompt)
    return _language(group.attrs) or self.fields.default_prompt or self._language

  def _read_camera(self, episode: int, key: str, indices: np.ndarray) -> np.ndarray:
    with self._group(episode) as group:
      return hdf5.as_pictures(hdf5.read_rows(group["obs"][key], indices))


def _default_state(observed: Mapping[str, np.ndarray]) -> list[str]:
  robots = sorted({name.split("_", 1)[0] for name in observed if name.startswith("robot")})
  parts = [f"{robot}{part}" for robot in robots for part in STATE_PARTS]
  return [name for name in parts if name in observed] or [n for n in sorted(observed) if observed[n].ndim <= 2]


def _language(attributes: Any) -> str:
  """Returns the instruction in the JSON attributes of RoboCasa (`ep_meta`) and LIBERO (`problem_info`), or ''."""
  for name, key in (("ep_meta", "lang"), ("problem_info", "language_instruction")):
    if name in attributes:
      text = json.loads(hdf5.as_text(attributes[name])).get(key, "")
      return " ".join(text) if isinstance(text, list) else str(text)
  return ""


def _plain(value: Any) -> Any:
  return value.item() if isinstance(value, np.generic) else value
