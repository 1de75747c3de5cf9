"""LIBERO: a simulated Franka arm driven at the hand, with a camera in front and one on the wrist.

An observation is `observation/image` and `observation/wrist_image` (uint8 [H, W, 3]), `observation/state` float[8]
(position in m, axis and angle in rad, two finger positions in m) and `prompt`; actions are float[T, 7]: changes of
position and rotation, and the gripper.
"""

import dataclasses
import math

import numpy as np

from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots import fields
from pi0rag_jax.robots.robot import ActionSpace, Robot
from pi0rag_jax.robots.teleop import Teleop

STATE_DIM, DIM = 8, 7
# robosuite's controller moves the hand by 5 cm and turns it by 0.5 rad per tick at 1; the gripper is -1 (open) to 1.
_M_PER_TICK, _RAD_PER_TICK, _REACH_M = 0.05, 0.5, 0.10
ACTIONS = ActionSpace(
  integrates=(*[True] * 6, False), cost=(*[100 * _M_PER_TICK] * 3, *[3.0 * _RAD_PER_TICK] * 3, 1.0),
  low=(-1.0,) * DIM, high=(1.0,) * DIM, together=((0, 1, 2), (3, 4, 5)),
  reach=(*[_REACH_M / _M_PER_TICK] * 3, *[math.inf] * 4))

# The first camera faces the robot.
TELEOP = Teleop(away=(0, -1), right=(1, 1), up=(2, 1), turn=(5, 1), gripper=6, opened=-1.0, closed=1.0)


@dataclasses.dataclass(frozen=True)
class LiberoInputs:
  """The model's inputs of an observation; a third camera is black: masked, but for pi0-FAST."""

  family: str

  def __call__(self, data: dict) -> dict:
    base = fields.read_image(data, "observation/image")
    wrist = fields.read_image(data, "observation/wrist_image")
    image = {"base_0_rgb": base, "left_wrist_0_rgb": wrist, "right_wrist_0_rgb": np.zeros_like(base)}
    mask = {name: np.bool_(name != "right_wrist_0_rgb" or self.family == "pi0_fast") for name in image}
    state = fields.read_vector(data, "observation/state", STATE_DIM)
    actions = {"actions": np.asarray(data["actions"])} if "actions" in data else {}
    return {"state": state, "image": image, "image_mask": mask, **actions, **fields.passed_on(data)}


@dataclasses.dataclass(frozen=True)
class LiberoOutputs:
  """The robot's actions float[T, 7] of a model's."""

  def __call__(self, data: dict) -> dict:
    return {"actions": np.asarray(data["actions"][:, :DIM])}


def example() -> dict:
  """Returns an observation of zeros."""
  picture = np.zeros((fields.EXAMPLE_PX, fields.EXAMPLE_PX, 3), np.uint8)
  return {"observation/image": picture, "observation/wrist_image": picture, "observation/state": np.zeros(STATE_DIM),
          "prompt": fields.EXAMPLE_PROMPT}


def robot(data: DataConfig, family: str) -> Robot:
  """Returns LIBERO for a model family."""
  del data
  return Robot("libero", LiberoInputs(family), LiberoOutputs(), ACTIONS, example, tick_s=0.05,
               teleop=TELEOP)
