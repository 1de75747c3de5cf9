"""robomimic's HDF5 files, and those of robodiff (Diffusion Policy) and LIBERO, which have the same layout."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pi0rag_jax.data import checks, hdf5
from pi0rag_jax.data.dataset import DEFAULT_FIELDS, DamagedEpisode, EpisodeData, Fields, prompt_or_default
from pi0rag_jax.data.formats import natural_key
from pi0rag_jax.errors import Pi0RagError, unknown_name

ACTIONS, OBSERVATIONS = "actions", "obs"
# The proprioception of robosuite's robots, as Diffusion Policy and robomimic's own configurations choose it.
STATE_PARTS = ("_eef_pos", "_eef_quat", "_gripper_qpos")
# File names under which robomimic and Diffusion Policy ship the same demonstrations in other forms.
VERSIONS = re.compile(r"(?:demo|image|low_dim|depth|raw)(?:_(?:abs|delta|sparse|dense|v\d+))*"
                      r"|(?P<base>.+)_(?:abs|delta)")


class RobomimicDataset(hdf5.Hdf5Dataset):
  """Groups `data/demo_<i>`, in the order of their numbers.

  The state is the position, orientation and gripper of every robot, or all observed numbers where there are none.
  `mask` names one of the file's filter keys, such as `train`.
  """

  format = "robomimic"
  options = ("mask",)
  default_fps = 20.0  # robosuite's control_freq
  length_key = ACTIONS

  def __init__(self, path, *, fields: Fields = DEFAULT_FIELDS, skip_bad: bool = False, mask: str | None = None):
    self._mask = mask
    super().__init__(path, fields=fields, skip_bad=skip_bad)
    self._refuse_versions()

  def _episode_groups(self, file: h5py.File) -> list[str]:
    names = sorted(hdf5.member(file, "data").keys(), key=natural_key)
    if self._mask is not None:
      masks = list(file["mask"].keys()) if "mask" in file else []
      if not masks:
        raise Pi0RagError(f"'{file.filename}' has no masks, '{self._mask}' is asked for: leave out `mask`")
      if self._mask not in masks:
        raise unknown_name(f"mask of '{file.filename}'", self._mask, masks)
      chosen = [checks.as_text(name, self._mask) for name in hdf5.stored(file, f"mask/{self._mask}")[()].tolist()]
      for name in sorted(set(chosen) - set(names), key=natural_key):
        text = f"mask '{self._mask}' of '{file.filename}' lists {checks.shown(name)}, which the file does not hold"
        self.count_damage(f"{name} in '{file.filename}'", DamagedEpisode(text))
      names = [name for name in names if name in set(chosen)]
    return [f"data/{name}" for name in names]

  def _inspect(self, group: Any) -> hdf5.Facts:
    if OBSERVATIONS not in group:
      raise ValueError("no observations are stored, only states: run robomimic's dataset_states_to_obs.py")
    env = hdf5.json_of(group.parent.attrs, "env_args")
    settings = env.get("env_kwargs")
    rate = settings.get("control_freq") if isinstance(settings, Mapping) else None
    where = f"'{group.file.filename}': control_freq in env_args"
    return hdf5.Facts(
      {name: why for name, why in hdf5.cameras(group[OBSERVATIONS]).items() if self._is_camera(group, name)},
      None if rate is None else checks.number(rate, where, low=0, high=checks.MAX_FPS),
      _language(group.parent.attrs) or self.fields.default_prompt or str(env.get("env_name") or ""))

  @staticmethod
  def _is_camera(group: Any, name: str) -> bool:
    """Returns whether an observation is a picture of any kind, rather than numbers."""
    item = group[OBSERVATIONS][name]
    encoded = item.ndim == 1 and item.dtype.kind in "SVO"
    return encoded or item.ndim == 4 or (item.ndim == 3 and item.dtype.kind == "u")

  def _refuse_versions(self) -> None:
    """Raises Pi0RagError where files hold the same demonstrations in several forms: actions of both would be mixed."""
    lengths: dict[Path, dict[str, int]] = {}
    facts = {}
    for (file, group), length, fact in zip(self._episodes, self.lengths.tolist(), self._facts):
      lengths.setdefault(file, {})[group] = length
      facts.setdefault(file, fact)
    for one, other in itertools.combinations(lengths, 2):
      shared = lengths[one].keys() & lengths[other].keys()
      if not shared or any(lengths[one][group] != lengths[other][group] for group in shared):
        continue
      if facts[one] and facts[other] and facts[one].prompt != facts[other].prompt:
        continue
      if _named_alike(one, other) or self._same_numbers(one, other, min(shared)):
        raise self._versions(one, other)

  def _read_arrays(self, episode: int) -> EpisodeData:
    length = int(self.lengths[episode])
    with self._group(episode) as group:
      arrays = hdf5.numeric_arrays(group, frames=length)
      metadata = {name: hdf5.plain(value) for name, value in group.attrs.items() if name != "model_file"}
      prompts = self._prompts(group, episode)
    observed = {name.removeprefix("obs/"): value for name, value in arrays.items() if name.startswith("obs/")}
    state = self.fields.state or _default_state(observed)
    extras = dict(arrays)
    arrays.alias("obs/")
    if not state:
      raise ValueError(f"no numbers are observed that could be the state: {_listed(arrays.unread)}")
    return EpisodeData(
      state=arrays.joined(state, what="state"),
      actions=arrays.joined(self.fields.actions or ACTIONS, what="actions"),
      prompts=prompts,
      timestamps=np.arange(length) / self.episode_fps(episode),
      extras=extras,
      metadata={"demo": self._episodes[episode][1].removeprefix("data/"), **metadata},
    )

  def _prompts(self, group: Any, episode: int) -> list[str]:
    """Returns the texts: of a chosen field, the episode's own, its file's, the default, the environment's name."""
    length = int(self.lengths[episode])
    if self.fields.prompt is not None:
      texts = hdf5.texts_of(group, self.fields.prompt, length)
      return [prompt_or_default(text, self.fields.default_prompt) for text in texts]
    return [_language(group.attrs) or self._file_prompt(episode)] * length

  def _read_camera(self, episode: int, key: str, indices: np.ndarray) -> np.ndarray:
    with self._group(episode) as group:
      return hdf5.read_pictures(hdf5.member(group, OBSERVATIONS), key, indices)


def _named_alike(one: Path, other: Path) -> bool:
  """Returns whether two files of a folder have names under which versions of the same demonstrations are shipped."""
  if one.parent != other.parent:
    return False
  found = [VERSIONS.fullmatch(path.stem) for path in (one, other)]
  if all(match and not match["base"] for match in found):
    return True
  bases = {(match and match["base"]) or path.stem for match, path in zip(found, (one, other))}
  return len(bases) == 1


def _default_state(observed: Mapping[str, np.ndarray]) -> list[str]:
  robots = sorted({name.split("_", 1)[0] for name in observed if name.startswith("robot")})
  parts = [f"{robot}{part}" for robot in robots for part in STATE_PARTS]
  return [name for name in parts if name in observed] or [n for n in sorted(observed) if observed[n].ndim <= 2]


def _language(attributes: Any) -> str:
  """Returns the instruction in the attributes of RoboCasa (`ep_meta`) and LIBERO (`problem_info`), or ''."""
  for name, key in (("ep_meta", "lang"), ("problem_info", "language_instruction")):
    text = hdf5.json_of(attributes, name).get(key)
    text = " ".join(map(str, text)) if isinstance(text, list) else text
    if isinstance(text, str) and text.strip():
      return text
  return ""


def _listed(unread: Mapping[str, str]) -> str:
  return "; ".join(f"'{name}': {why}" for name, why in list(unread.items())[:3]) or "'obs' is empty"
