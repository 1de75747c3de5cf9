"""From a data set's samples to a robot's dictionaries: which column is which of the robot's entries.

A configuration of openpi's kind names the data set's columns in its `repack`: cameras, parts of the state, the actions
and the prompt. The readers of `pi0rag_jax.data` give one state and one chunk; here they get their columns' names back.
A column that packs several of the robot's entries is named with its part: "observation.state[0:7]".
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from pi0rag_jax.data.dataset import Dataset, Fields
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots.transforms import Repack

PROMPT_COLUMNS = ("prompt", "task")
# What an entry of `config.data` may say of its data set, as `Fields` has it; columns say the rest.
PROMPT_FIELDS = {"prompt", "default_prompt"}
FIELDS = PROMPT_FIELDS | {"fps"}
_PART = re.compile(r"(?P<column>.+)\[(?P<first>[0-9]+):(?P<end>[0-9]+)\]")


@dataclasses.dataclass(frozen=True)
class Columns:
  """What makes the robot's dictionary of a sample."""

  state: tuple[tuple[str, int], ...]  # columns of the state and how many numbers each has
  parts: tuple[str, ...]  # of such columns, as "name[first:end]"
  cameras: tuple[str, ...]
  actions: str | None
  repack: Mapping[str, Any]  # robot's keys -> columns, nested
  prompts: bool  # whether the data's text is the prompt, also where `repack` does not name it
  extras: tuple[tuple[str, int], ...] = ()  # columns that no robot reads; they lie behind the state

  def __call__(self, sample: Mapping) -> dict:
    """Returns the dictionary that the robot's transforms take; pictures as LeRobot has them, [3, H, W].

    A sample without a text gets no prompt. One without pictures, as statistics are computed from, gets black ones of
    one pixel.
    """
    found: dict[str, Any] = {} if self.actions is None else {self.actions: sample["actions"]}
    for camera in self.cameras:
      picture = sample["image"][camera] if "image" in sample else np.zeros((1, 1, 3), np.uint8)
      found[camera] = np.moveaxis(picture, -1, 0)
    found |= _cut(self.state, sample["state"])
    for part in self.parts:
      column, first, end = _split_part(part)
      found[part] = found[column][first:end]
    found |= dict.fromkeys(PROMPT_COLUMNS, sample["prompt"])
    # A column's name may contain '/', which the structure's leaves are looked up by.
    robot = Repack(self.repack)(found)
    robot = {"prompt": sample["prompt"], **robot} if self.prompts else robot
    if "prompt" in robot and not str(robot["prompt"]).strip():  # the configuration's default prompt takes its place
      del robot["prompt"]
    return robot

  def extra(self, state_FP: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Returns float32[..., G], the extra columns of these names side by side, of the data set's state."""
    width = sum(size for _, size in self.state)
    found = _cut(self.extras, state_FP[..., width:])
    return np.concatenate([found[name] for name in names], axis=-1, dtype=np.float32)

  def observations(self, dataset: Dataset, episode: int, count: int) -> list[dict]:
    """Returns the robot's dictionaries, without actions, of evenly spaced frames of an episode."""
    data = dataset.read_episode(episode, images=False)
    at = np.linspace(0, len(data) - 1, count).astype(int)
    images = dataset.read_frames(episode, at)
    seen = dataclasses.replace(self, actions=None, repack=_without(self.repack, self.actions))
    return [seen({"image": {name: pictures[i] for name, pictures in images.items()}, "state": data.state[frame],
                  "prompt": data.prompts[frame]}) for i, frame in enumerate(at.tolist())]


def open_columns(path: str | Path, repack: Mapping[str, Any], *, action_columns: Sequence[str] = (), labels: str = "",
                 extras: Sequence[str] = (), prompts: bool = True, fields: Mapping[str, Any] | None = None,
                 skip_bad: bool = False, **options: Any) -> tuple[Dataset, Columns]:
  """Returns a data set that reads what a robot needs, and what makes its dictionaries.

  Args:
    path: of the data set, in any format that `open_dataset` reads.
    repack: robot's keys -> columns, nested, as in DataConfig.
    action_columns: of DataConfig; one at most. Without any the dictionaries have no actions.
    labels: the field whose whole chunks are learned instead of chunks cut from the actions; '' has none.
    extras: further columns, see `Columns.extra`.
    prompts: see Columns.
    fields: entries of Fields about prompt and frames per second.
    skip_bad, options: see `open_dataset`.
  Raises:
    Pi0RagError: a column is not in the data set.
  """
  if len(action_columns) > 1:
    raise Pi0RagError(f"action_sequence_keys {tuple(action_columns)}: one column of actions is supported")
  if action_columns and str(repack.get("actions", action_columns[0])) != action_columns[0]:
    raise Pi0RagError(f"repack reads 'actions' from column '{repack['actions']}', action_sequence_keys name "
                      f"'{action_columns[0]}': chunks are cut from one column, so both have to be the same")
  wanted = list(dict.fromkeys(str(c) for c in traverse_util.flatten_dict(dict(repack), sep="\0").values()))
  parts = tuple(column for column in wanted if _PART.fullmatch(column))
  wanted = list(dict.fromkeys(_split_part(column)[0] if column in parts else column for column in wanted))
  opened = lambda **changes: open_dataset(  # noqa: E731
    path, fields=Fields(**(dict(fields or {}) | changes)), skip_bad=skip_bad, **options)
  probe = opened()
  stored = set(probe.camera_keys.values())
  cameras = tuple(column for column in wanted if column in stored)
  state = [c for c in wanted if c not in stored and c not in action_columns and c not in PROMPT_COLUMNS]
  if not state:
    raise Pi0RagError(f"repack names no column of the state; it names {', '.join(wanted)}")
  _, example = next(probe.iterate(), (None, None))

  def size(column: str) -> int:
    if example is not None and column in example.extras:
      return 1 if example.extras[column].ndim == 1 else example.extras[column].shape[-1]
    try:
      return opened(state=column).state_dim
    except Pi0RagError as error:
      cameras_there = ", ".join(sorted(stored)) or "none"
      raise Pi0RagError(f"column '{column}', which is no camera of '{path}' ({cameras_there}): {error}") from error

  actions = action_columns[0] if action_columns else None
  found = Columns(tuple((column, size(column)) for column in state), parts, cameras, actions, dict(repack), prompts,
                  tuple((column, size(column)) for column in extras))
  dataset = opened(state=(*state, *extras), actions=labels or actions, cameras={column: column for column in cameras})
  return dataset, found


def check_repack(repack: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
  """Returns the repack of a configuration, or says that it needs one."""
  if not repack:
    raise Pi0RagError(f"configuration '{name}' does not say which columns its data set has: give `columns`, robot's "
                      "keys by column names, as configs/my_robot.py does in `repack`")
  return repack


def check_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an entry's `fields`, if they are some of FIELDS."""
  if unknown := sorted(set(fields) - FIELDS):
    raise Pi0RagError(f"fields: unknown {', '.join(unknown)}; allowed: {', '.join(sorted(FIELDS))}, since columns name "
                      "the rest")
  return dict(fields)


def _without(repack: Mapping[str, Any], column: str | None) -> dict[str, Any]:
  """Returns the structure without the robot's key of a column."""
  return {key: _without(value, column) if isinstance(value, Mapping) else value
          for key, value in repack.items() if isinstance(value, Mapping) or value != column}


def _cut(columns: Sequence[tuple[str, int]], values: np.ndarray) -> dict[str, np.ndarray]:
  """Returns the arrays [..., size] of columns that lie side by side in [..., P]."""
  ends = np.cumsum([size for _, size in columns])
  return {column: values[..., end - size : end] for (column, size), end in zip(columns, ends)}


def _split_part(column: str) -> tuple[str, int, int]:
  """Returns ("name", first, end) of "name[first:end]"."""
  found = _PART.fullmatch(column)
  assert found is not None, column
  return found["column"], int(found["first"]), int(found["end"])
