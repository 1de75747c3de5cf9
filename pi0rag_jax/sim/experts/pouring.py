"""The expert of pouring: approach the cup from above, grip, lift, carry to beside the bowl, tip.

The rule has no memory: which phase applies follows from where the fingertips, the cup and the bowl are, and how far
the cup is tipped follows from how near its place beside the bowl is. So an error found while tipping is mended.
"""

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from pi0rag_jax.sim.experts.base import NO_MISTAKE, Expert, Mistake
from pi0rag_jax.sim.experts.funnel import FAST_M, bounded, descent_speed, sideways_share
from pi0rag_jax.sim.experts.kinematics import Forecast
from pi0rag_jax.sim.tasks.cubes import HOLD_FORCE_N
from pi0rag_jax.sim.tasks.pouring import CUP, cup_axis

if TYPE_CHECKING:
  from pi0rag_jax.sim.env import PandaEnv

HOVER_M = 0.12  # of the fingertips, where they clear the cup
POUR_M = 0.15  # of the fingertips, where the tipped cup and the hand clear the bowls
# From the bowl's centre to the grip while pouring: the balls leave forwards, and the cup's mouth leans to the hand.
POUR_FROM_M = (-0.045, 0.030)
POUR_TURN_RAD = -2.6
TURN_SPEED_RAD = 0.07  # per tick
AT_POINT_M, AT_HEIGHT_M = 0.006, 0.004
LEVEL_RAD = 0.06
SETTLED_M = 0.0035  # the tool trails its command; act once it has caught up
OPEN_WIDTH_M = 0.074  # wide enough to go around the cup
# Along a funnel: horizontal distance at which the tool must be at full height, m (angles in rad).
_FUNNEL_M, _FUNNEL_RAD, _FUNNEL_WIDTH_M = 0.03, 0.35, 0.03
# A cup that leans by more rights itself on its heavy foot once the fingers are out of its way; by less it is gripped.
_UPRIGHT_RAD, _FUNNEL_LEAN_RAD = 0.9, 0.1
# The cup is upright when its place beside the bowl is so far, and may be tipped all the way when it is so near.
_TIP_FROM_M, _TIP_FULLY_M = 0.05, 0.015
# The grip reaches around the cup within these distances between the fingertips and the place where to grip it.
_REACH_M, _REACH_HEIGHT_M = 0.035, 0.03
# A tool that trails by more is blocked and must come up again; free motion trails by 13 mm at most.
_BLOCKED_M, _FUNNEL_BLOCKED_M = 0.018, 0.02


@dataclasses.dataclass
class _Scene:
  """The imagined task: robot, cup (place to grip, lean, whether it is held, width), bowl. Metres, radians."""

  robot: Forecast
  grip: list[float]
  lean: float
  held: bool
  width: float
  bowl: tuple[float, float]

  def around(self) -> bool:
    """Returns whether the cup is between the fingers."""
    x, y, z = (c - m for c, m in zip(self.grip, self.robot.measured))
    return math.hypot(x, y) < _REACH_M and abs(z) < _REACH_HEIGHT_M


class PouringExpert(Expert):
  """Approach, descend, close, lift, carry, tip."""

  def plan(self, env: "PandaEnv", horizon: int, mistake: Mistake = NO_MISTAKE) -> np.ndarray:
    """Returns float32[horizon, 5], see `Expert.plan`."""
    scene = _observe(env, mistake)
    return np.array([_tick(scene) for _ in range(horizon)], np.float32)


def _observe(env: "PandaEnv", mistake: Mistake) -> _Scene:
  config = env.task.config
  held = env.physics.contacts().holds(CUP, HOLD_FORCE_N)
  x, y, z = env.task.grip_position(env.physics).tolist()
  if not held:
    x, y = x + mistake.x_m, y + mistake.y_m
  east, north = env.layout.bowls[0]
  width = 2 * (config.cup.radius + config.cup.thickness)
  lean = math.acos(min(float(cup_axis(env.physics)[2]), 1.0))
  return _Scene(Forecast.of(env), [x, y, z], lean, held, width, (east + mistake.x_m, north + mistake.y_m))


def _tick(scene: _Scene) -> tuple[float, ...]:
  """Returns the next action [5] and advances the imagined scene by it."""
  if scene.held:
    step, turn, gripper_open = _pour(scene)
  elif _closing(scene):
    step, turn, gripper_open = (0.0, 0.0, 0.0), 0.0, False
  else:
    step, turn, gripper_open = _approach(scene)
  around = scene.around()
  before = scene.robot.measured
  action = scene.robot.move(step, turn, gripper_open, scene.width if around else 0.0)
  if scene.held:
    scene.grip = [c + now - then for c, now, then in zip(scene.grip, scene.robot.measured, before)]
  else:
    scene.held = around and not gripper_open and scene.robot.width < scene.width + 0.001
  return action


def _approach(scene: _Scene):
  """Returns (step [3], turn, gripper open): over the cup, then down around it; closes where it stands."""
  robot, grip = scene.robot, scene.grip
  dx, dy = grip[0] - robot.commanded[0], grip[1] - robot.commanded[1]
  distance, turn = math.hypot(dx, dy), -robot.yaw
  lowest, height = grip[2], robot.commanded[2]
  in_place = distance < AT_POINT_M and abs(turn) < LEVEL_RAD and abs(height - lowest) < AT_HEIGHT_M
  if in_place and robot.width > OPEN_WIDTH_M and robot.trail < SETTLED_M:
    return (0.0, 0.0, 0.0), 0.0, False
  up = max(
    (distance - AT_POINT_M) / _FUNNEL_M,
    (abs(turn) - LEVEL_RAD) / _FUNNEL_RAD,
    (OPEN_WIDTH_M - robot.width) / _FUNNEL_WIDTH_M,
    (scene.lean - _UPRIGHT_RAD) / _FUNNEL_LEAN_RAD,
    (robot.trail - _BLOCKED_M) / _FUNNEL_BLOCKED_M,
  )
  floor = lowest + (HOVER_M - lowest) * min(max(up, 0.0), 1.0)
  sideways = sideways_share(height, floor)
  slow = descent_speed(height - HOVER_M)
  dz = min(max(floor - height, -slow), FAST_M)
  return (*bounded(dx, dy, FAST_M * sideways), dz), _slowly(turn), True


def _pour(scene: _Scene):
  """Returns (step [3], turn, gripper open): lift, over to beside the bowl, and tip the nearer the further."""
  robot = scene.robot
  # Where the cup will be once the tool has caught up with its command.
  x, y, z = (value + lag for value, lag in zip(scene.grip, robot.lag))
  dx, dy = scene.bowl[0] + POUR_FROM_M[0] - x, scene.bowl[1] + POUR_FROM_M[1] - y
  distance = max(math.hypot(dx, dy), abs(POUR_M - z))
  share = min(max((_TIP_FROM_M - distance) / (_TIP_FROM_M - _TIP_FULLY_M), 0.0), 1.0)
  turn = POUR_TURN_RAD * share - robot.yaw
  dz = min(max(POUR_M - z, -FAST_M), FAST_M)
  sideways = FAST_M * sideways_share(z, POUR_M)
  return (*bounded(dx, dy, sideways), dz), _slowly(turn), False


def _slowly(turn: float) -> float:
  return min(max(turn, -TURN_SPEED_RAD), TURN_SPEED_RAD)


def _closing(scene: _Scene) -> bool:
  """Whether the fingers are on their way to the cup between them."""
  return not scene.robot.gripper_open and scene.robot.width > 0.95 * scene.width and scene.around()
