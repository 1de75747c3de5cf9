"""The simulated mobile manipulator: a base that drives forward and turns, a lift, an arm that extends, two fingers.

An observation is `image` {`base_0_rgb` (on the mast, looking ahead), `left_wrist_0_rgb` (behind the fingers),
`ceiling_0_rgb` (of the room that the base is in): uint8[S, S, 3]}, `state` float[7] (the base's x and y in the flat in
m, cosine and sine of its heading, lift and reach in m, the gripper's opening from 0 to 1) and `prompt`; actions are
float[T, 5]: forward in m/s, turning to the left in rad/s, commanded lift and reach in m, the gripper from 0 (closed) to
1 (open).
"""

import functools
import math

from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots import plain
from pi0rag_jax.robots.robot import ActionSpace, Robot

STATE_DIM, DIM = 7, 5
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "ceiling_0_rgb")
PX = 64
TICK_S = 0.1
SPEED, TURN = 0.8, 1.6  # most of the base, m/s and rad/s
LIFT_M, REACH_M = (0.15, 1.05), (0.0, 0.3)
# 1 cm costs 1; a turn costs what it moves the fingers, half a metre ahead.
_TURN_COST = 50.0
ACTIONS = ActionSpace(
  integrates=(True, True, False, False, False), cost=(100 * TICK_S, _TURN_COST * TICK_S, 100.0, 100.0, 2.0),
  low=(-SPEED, -TURN, LIFT_M[0], REACH_M[0], 0.0), high=(SPEED, TURN, LIFT_M[1], REACH_M[1], 1.0),
  reach=(0.3 / TICK_S, 0.5 / TICK_S, 0.1, 0.1, math.inf))


def robot(data: DataConfig, family: str) -> Robot:
  """Returns the mobile manipulator, the same for every model family."""
  del data, family
  return Robot(
    "mobile", functools.partial(plain.inputs, state_dim=STATE_DIM), functools.partial(plain.outputs, dim=DIM),
    ACTIONS, functools.partial(plain.example, CAMERAS, STATE_DIM, (PX, PX)), tick_s=TICK_S)
