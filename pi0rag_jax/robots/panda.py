"""The simulated Panda (pi0rag_jax.sim.env): a Franka arm driven at the tool, a plain robot of fixed sizes.

An observation is `image` {`base_0_rgb`, `left_wrist_0_rgb`: uint8[S, S, 3]}, `state` float[10] and `prompt`; actions
are float[T, 5]: dx, dy, dz (m) and dyaw (rad) per tick, and the gripper's opening.
"""

import functools
import math

from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots import plain
from pi0rag_jax.robots.robot import ActionSpace, Robot
from pi0rag_jax.robots.teleop import Teleop

STATE_DIM, DIM = 10, 5
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")
PX = 64
ACTIONS = ActionSpace(
  integrates=(True, True, True, True, False), cost=(100.0, 100.0, 100.0, 3.0, 2.0),
  low=(-0.015, -0.015, -0.015, -0.075, 0.0), high=(0.015, 0.015, 0.015, 0.075, 1.0),
  together=((0, 1, 2),), reach=(0.10, 0.10, 0.10, math.inf, math.inf))

# The first camera faces the robot.
TELEOP = Teleop(away=(0, -1), right=(1, 1), up=(2, 1), turn=(3, 1), gripper=4, opened=1.0, closed=0.0)


def robot(data: DataConfig, family: str) -> Robot:
  """Returns the Panda, the same for every model family."""
  del data, family
  return Robot(
    "panda", functools.partial(plain.inputs, state_dim=STATE_DIM), functools.partial(plain.outputs, dim=DIM), ACTIONS,
    functools.partial(plain.example, CAMERAS, STATE_DIM, (PX, PX)), tick_s=0.05,
    teleop=TELEOP)
