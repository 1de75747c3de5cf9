"""DROID: a Franka arm of seven joints and a gripper, with a camera beside it and one on the wrist.

An observation is `observation/exterior_image_1_left` and `observation/wrist_image_left` (uint8 [H, W, 3]),
`observation/joint_position` float[7] (rad), `observation/gripper_position` float[1] (0 open, 1 closed) and
`prompt`; actions are float[T, 8]: joint velocities, or positions for the configurations named so, and the gripper.
"""

import dataclasses
import math

import numpy as np

from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots import fields
from pi0rag_jax.robots.robot import ActionSpace, Robot

JOINTS, DIM = 7, 8
# DROID's controller turns a joint by 0.2 rad per tick at a velocity of 1.
_RAD_PER_TICK = 0.2
VELOCITIES = ActionSpace(
  integrates=(*[True] * JOINTS, False), cost=(*[3.0 * _RAD_PER_TICK] * JOINTS, 2.0),
  low=(*[-1.0] * JOINTS, 0.0), high=(1.0,) * DIM)
# No joint of a Franka arm reaches a turn.
POSITIONS = ActionSpace(
  integrates=(False,) * DIM, cost=(*[3.0] * JOINTS, 2.0), low=(*[-2 * math.pi] * JOINTS, 0.0),
  high=(*[2 * math.pi] * JOINTS, 1.0))


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


def example() -> dict:
  """Returns an observation of zeros."""
  picture = np.zeros((fields.EXAMPLE_PX, fields.EXAMPLE_PX, 3), np.uint8)
  return {"observation/exterior_image_1_left": picture, "observation/wrist_image_left": picture,
          "observation/joint_position": np.zeros(JOINTS), "observation/gripper_position": np.zeros(1),
          "prompt": fields.EXAMPLE_PROMPT}


def robot(data: DataConfig, family: str) -> Robot:
  """Returns DROID for a model family; relative actions, or the data's name for them, mean joint positions."""
  positions = data.delta_mask is not None or data.action_space == "joint_position"
  actions = POSITIONS if positions else VELOCITIES
  return Robot("droid", DroidInputs(family), DroidOutputs(), actions, example, tick_s=1 / 15)
