"""MetaWorld's Sawyer: an arm driven at the hand, with a camera in front and one on the wrist; a plain robot.

An observation is `image` {`base_0_rgb`, `left_wrist_0_rgb`: uint8[S, S, 3]}, `state` float[4] (hand x, y, z in m, the
gripper's opening from 0 to 1) and `prompt`; actions are float[T, 4]: dx, dy, dz and the gripper's effort from -1 (open)
to 1 (closed).
"""

import functools
import math

from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots import plain
from pi0rag_jax.robots.robot import ActionSpace, Robot
from pi0rag_jax.robots.teleop import Teleop

STATE_DIM = DIM = 4
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")
PX = 64
TICK_S = 0.0125
# At 1 the place that the hand is drawn to moves by 1 cm per tick, and so does the hand once it is under way.
_M_PER_TICK, _REACH_M = 0.01, 0.10
ACTIONS = ActionSpace(
  integrates=(True, True, True, False), cost=(*[100 * _M_PER_TICK] * 3, 1.0), low=(-1.0,) * DIM, high=(1.0,) * DIM,
  together=((0, 1, 2),), reach=(*[_REACH_M / _M_PER_TICK] * 3, math.inf))

TELEOP = Teleop(away=(1, 1), right=(0, 1), up=(2, 1), gripper=3, opened=-1.0, closed=1.0)


def robot(data: DataConfig, family: str) -> Robot:
  """Returns MetaWorld's Sawyer, the same for every model family."""
  del data, family
  return Robot(
    "metaworld", functools.partial(plain.inputs, state_dim=STATE_DIM), functools.partial(plain.outputs, dim=DIM),
    ACTIONS, functools.partial(plain.example, CAMERAS, STATE_DIM, (PX, PX)), tick_s=TICK_S,
    teleop=TELEOP)
