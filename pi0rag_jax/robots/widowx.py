"""A WidowX driven at the hand at 5 Hz, as in Bridge, with cameras in front and on the wrist; a plain robot.

An observation is `image` {`base_0_rgb`, `left_wrist_0_rgb`: uint8[S, S, 3]}, `state` float[7] (the fingertips' x, y, z,
m above the table and from the base's axis; how the hand is turned from pointing down, as a rotation vector in rad; the
gripper's opening from 0 to 1) and `prompt`; actions are float[T, 7]: dx, dy, dz, a rotation vector, and how far the
gripper shall be open.
"""

import functools
import math

from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots import plain
from pi0rag_jax.robots.robot import ActionSpace, Robot
from pi0rag_jax.robots.teleop import Teleop

STATE_DIM = DIM = 7
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")
PX = 64
TICK_S = 0.2
MAX_STEP_M, MAX_TURN_RAD = 0.05, 0.4  # per tick
_REACH_M = 0.10
ACTIONS = ActionSpace(
  integrates=(*[True] * 6, False), cost=(*[100.0] * 3, *[3.0] * 3, 2.0),
  low=(*[-MAX_STEP_M] * 3, *[-MAX_TURN_RAD] * 3, 0.0), high=(*[MAX_STEP_M] * 3, *[MAX_TURN_RAD] * 3, 1.0),
  together=((0, 1, 2), (3, 4, 5)), reach=(*[_REACH_M] * 3, *[math.inf] * 4))

# The first camera faces the robot.
TELEOP = Teleop(away=(0, -1), right=(1, 1), up=(2, 1), turn=(5, 1), gripper=6, opened=1.0, closed=0.0)


def robot(data: DataConfig, family: str) -> Robot:
  """Returns the WidowX, the same for every model family."""
  del data, family
  return Robot(
    "widowx", functools.partial(plain.inputs, state_dim=STATE_DIM), functools.partial(plain.outputs, dim=DIM),
    ACTIONS, functools.partial(plain.example, CAMERAS, STATE_DIM, (PX, PX)), tick_s=TICK_S, teleop=TELEOP)
