"""DROID: a Franka arm of seven joints and a gripper, with a camera beside it and one on the wrist.

An observation is `observation/exterior_image_1_left` and `observation/wrist_image_left` (uint8 [H, W, 3]),
`observation/joint_position` float[7] (rad), `observation/gripper_position` float[1] (0 open, 1 closed) and
`prompt`; actions are float[T, 8]: joint velocities, or positions for the configurations named so, and the gripper.
"""

import dataclasses

import numpy as np

from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots import fields
from pi0rag_jax.robots.transforms import TransformGroup

JOINTS, DIM = 7, 8


@dataclasses.dataclass(frozen=True)
class DroidInputs:
  """The model's inputs of an observation; a third camera is black: masked, but for pi0-FAST."""

  family: str

  def __call__(self, data: dict) -> dict:
    base = fields.read_image(data, "observation/exterior_image_1_left")
    wrist = fields.read_image(data, "observation/wrist_image_left")
    black = np.zeros_like(base)
    if self.family == "pi0_fast":
      image = {"base_0_rgb": base, "base_1_rgb": black, "wrist_0_rgb": wrist}
      mask = dict.fromkeys(image, np.True_)
    else:
      image = {"base_0_rgb": base, "left_wrist_0_rgb": wrist, "right_wrist_0_rgb": black}
      mask = {name: np.bool_(name != "right_wrist_0_rgb") for name in image}
    state = np.concatenate([fields.read_vector(data, "observation/joint_position", JOINTS),
                            fields.read_vector(data, "observation/gripper_position", DIM - JOINTS)])
    actions = {"actions": np.asarray(data["actions"])} if "actions" in data else {}
    return {"state": state, "image": image, "image_mask": mask, **actions, **fields.passed_on(data)}


@dataclasses.dataclass(frozen=True)
class DroidOutputs:
  """The robot's actions float[T, 8] of a model's."""

  def __call__(self, data: dict) -> dict:
    return {"actions": np.asarray(data["actions"][:, :DIM])}


def transforms(data: DataConfig, family: str) -> TransformGroup:
  """Returns the robot's transforms for a model family."""
  del data
  return TransformGroup((DroidInputs(family),), (DroidOutputs(),))
