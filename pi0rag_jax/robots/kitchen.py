"""FrankaKitchen's Franka, driven by joint velocities at 12.5 Hz, with cameras behind it and at its hand; a plain robot.

An observation is `image` {`base_0_rgb`, `left_wrist_0_rgb`: uint8[S, S, 3]}, `state` float[18] (seven joints, rad, two
fingers, m, and their velocities) and `prompt`; actions are float[T, 9] from -1 to 1: joint velocities of 2 rad/s, and
fingers that close (-1) or open (1) at once.
"""

import functools

from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots import plain
from pi0rag_jax.robots.robot import ActionSpace, Robot

STATE_DIM, DIM, JOINTS = 18, 9, 7
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")
PX = 64
TICK_S = 0.08
# At 1 a joint is sent 0.16 rad ahead of where it is, of which it does half in a tick.
_RAD_PER_TICK = 0.08
ACTIONS = ActionSpace(
  integrates=(*[True] * JOINTS, False, False), cost=(*[3.0 * _RAD_PER_TICK] * JOINTS, 0.5, 0.5),
  low=(-1.0,) * DIM, high=(1.0,) * DIM)


def robot(data: DataConfig, family: str) -> Robot:
  """Returns FrankaKitchen's Franka, the same for every model family."""
  del data, family
  return Robot(
    "kitchen", functools.partial(plain.inputs, state_dim=STATE_DIM), functools.partial(plain.outputs, dim=DIM),
    ACTIONS, functools.partial(plain.example, CAMERAS, STATE_DIM, (PX, PX)), tick_s=TICK_S)
