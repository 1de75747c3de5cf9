"""The simulated Panda (pi0rag_jax.sim.env): a Franka arm driven at the tool, which speaks the model's own entries.

An observation is `image` {`base_0_rgb`, `left_wrist_0_rgb`: uint8[S, S, 3]}, `state` float[10] and `prompt`; actions
are float[T, 5]: dx, dy, dz (m) and dyaw (rad) per tick, and the gripper's opening.
"""

import math
from collections.abc import Mapping

import numpy as np

from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots import fields
from pi0rag_jax.robots.robot import ActionSpace, Robot

STATE_DIM, DIM = 10, 5
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")
PX = 64
ACTIONS = ActionSpace(
  integrates=(True, True, True, True, False), cost=(100.0, 100.0, 100.0, 3.0, 2.0),
  low=(-0.015, -0.015, -0.015, -0.075, 0.0), high=(0.015, 0.015, 0.015, 0.075, 1.0),
  together=((0, 1, 2),), reach=(0.10, 0.10, 0.10, math.inf, math.inf))


def inputs(data: Mapping) -> dict:
  """Returns the model's entries of an observation, or of a sample of a data set, which has `actions` too."""
  cameras = fields.read_group(data, "image")
  actions = {"actions": np.asarray(data["actions"])} if "actions" in data else {}
  return {"image": {name: fields.read_image(cameras, name) for name in cameras},
          "state": fields.read_vector(data, "state", STATE_DIM), **actions, **fields.passed_on(data)}


def outputs(data: Mapping) -> dict:
  """Returns the robot's actions float[T, 5] of the model's."""
  return {"actions": data["actions"][:, :DIM]}


def example() -> dict:
  """Returns an observation of zeros."""
  picture = np.zeros((PX, PX, 3), np.uint8)
  return {"image": dict.fromkeys(CAMERAS, picture), "state": np.zeros(STATE_DIM, np.float32),
          "prompt": fields.EXAMPLE_PROMPT}


def robot(data: DataConfig, family: str) -> Robot:
  """Returns the Panda, the same for every model family."""
  del data, family
  return Robot("panda", inputs, outputs, ACTIONS, example, tick_s=0.05)
