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
_PART = re.compile(r"(?P<column>.+)\[(?P<first>[0-9]+):(?P<end>[0-9]+)\]")


@dataclasses.dataclass(frozen=True)
class Columns:
  """What makes the robot's dictionary of a sample."""

  state: tuple[tuple[str, int], ...]  # columns of the state and how many numbers each has
  parts: tuple[str, ...]  # of such columns, as "name[first:end]"
  cameras: tuple[str, ...]
  actions: str
  repack: Mapping[str, Any]  # robot's keys -> columns, nested

  def __call__(self, sample: Mapping) -> dict:
    """Returns the dictionary that the robot's transforms take; pictures as LeRobot has them, [3, H, W].

    A sample without a text gets no prompt. One without pictures, as statistics are computed from, gets black ones of
    one pixel.
    """
    found: dict[str, Any] = {self.actions: sample["actions"]}
    for camera in self.cameras:
      picture = sample["image"][camera] if "image" in sample else np.zeros((1, 1, 3), np.uint8)
      found[camera] = np.moveaxis(picture, -1, 0)
    ends = np.cumsum([size for _, size in self.state])
    for (column, size), end in zip(self.state, ends):
      found[column] = sample["state"][end - size : end]
    for part in self.parts:
      column, first, end = _split_part(part)
      found[part] = found[column][first:end]
    found |= dict.fromkeys(PROMPT_COLUMNS, sample["prompt"])
    # A column's name may contain '/', which the structure's leaves are looked up by.
    robot = {"prompt": sample["prompt"], **Repack(self.repack)(found)}
    if not robot["prompt"].strip():  # the data set holds no text: a configuration's default prompt takes its place
      del robot["prompt"]
    return robot


def open_columns(path: str | Path, repack: Mapping[str, Any], *, action_columns: Sequence[str], skip_bad: bool = False,
                 **options: Any) -> tuple[Dataset, Columns]:
  """Returns a data set that reads what a robot needs, and what makes its dictionaries.

  Args:
    path: of the data set, in any format that `open_dataset` reads.
    repack: robot's keys -> columns, nested, as in DataConfig.
    action_columns: of DataConfig; one.
    skip_bad, options: see `open_dataset`.
  Raises:
    Pi0RagError: a column is not in the data set.
  """
  if len(action_columns) != 1:
    raise Pi0RagError(f"action_sequence_keys {tuple(action_columns)}: one column of actions is supported")
  wanted = list(dict.fromkeys(str(c) for c in traverse_util.flatten_dict(dict(repack), sep="\0").values()))
  parts = tuple(column for column in wanted if _PART.fullmatch(column))
  wanted = list(dict.fromkeys(_split_part(column)[0] if column in parts else column for column in wanted))
  probe = open_dataset(path, skip_bad=skip_bad, **options)
  stored = set(probe.camera_keys.values())
  cameras = tuple(column for column in wanted if column in stored)
  state = [c for c in wanted if c not in stored and c not in action_columns and c not in PROMPT_COLUMNS]
  if not state:
    raise Pi0RagError(f"repack names no column of the state; it names {', '.join(wanted)}")
  sizes = []
  for column in state:
    try:
      sizes.append(open_dataset(path, fields=Fields(state=column), skip_bad=skip_bad, **options).state_dim)
    except Pi0RagError as error:
      cameras_there = ", ".join(sorted(stored)) or "none"
      raise Pi0RagError(f"column '{column}', which is no camera of '{path}' ({cameras_there}): {error}") from error
  fields = Fields(state=tuple(state), actions=action_columns[0], cameras={column: column for column in cameras})
  dataset = open_dataset(path, fields=fields, skip_bad=skip_bad, **options)
  return dataset, Columns(tuple(zip(state, sizes)), parts, cameras, action_columns[0], dict(repack))


def _split_part(column: str) -> tuple[str, int, int]:
  """Returns ("name", first, end) of "name[first:end]"."""
  found = _PART.fullmatch(column)
  assert found is not None, column
  return found["column"], int(found["first"]), int(found["end"])


def check_repack(repack: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
  """Returns the repack of a configuration, or says that it needs one."""
  if not repack:
    raise Pi0RagError(f"configuration '{name}' does not say which columns its data set has: give `columns`, robot's "
                      "keys by column names, as configs/my_robot.py does in `repack`")
  return repack
