"""The expert of pouring: approach the cup from above, grip, lift, carry to beside the bowl, tip.

How far the cup is tipped follows from how near its place beside the bowl is, so an error found while tipping is mended.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from pi0rag_jax.sim.experts.base import Expert, Mistake
from pi0rag_jax.sim.experts.funnel import CLOSE, Motion, descend, share
from pi0rag_jax.sim.experts.grasp import Aim, Grasp, approach
from pi0rag_jax.sim.experts.kinematics import Forecast
from pi0rag_jax.sim.tasks.pouring import CUP
from pi0rag_jax.sim.tasks.table import is_held

if TYPE_CHECKING:
  from pi0rag_jax.sim.env import PandaEnv

HOVER_M = 0.12  # of the fingertips, where they clear the cup
POUR_M = 0.15  # of the fingertips, where the tipped cup and the hand clear the bowls
# From the bowl's centre to the grip while pouring: the balls leave forwards, and the cup's mouth leans to the hand.
POUR_FROM_M = (-0.045, 0.030)
POUR_TURN_RAD = -2.6
TURN_SPEED_RAD = 0.07  # per tick
OPEN_WIDTH_M = 0.074  # wide enough to go around the cup
LEVEL_RAD = 0.06
UPRIGHT_RAD = 0.9  # a cup that leans by more is left to right itself on its heavy foot
# The cup is upright when its place beside the bowl is so far, and may be tipped all the way when it is so near.
_TIP_FROM_M, _TIP_FULLY_M = 0.05, 0.015


@dataclasses.dataclass
class _Scene:
  """The imagined task: robot, cup (place to grasp, lean, whether it is held), bowl. Metres, radians."""

  robot: Forecast
  grasp: Grasp
  place: list[float]
  lean: float
  held: bool
  bowl: tuple[float, float]


class PouringExpert(Expert):
  """Approach, descend, close, lift, carry, tip."""

  def imagine(self, env: "PandaEnv", mistake: Mistake) -> Callable[[], tuple[float, ...]]:
    """Returns what gives the next action, see `Expert.imagine`. The closing fingers turn the cup into line."""
    return functools.partial(_tick, _observe(env, mistake))


def _observe(env: "PandaEnv", mistake: Mistake) -> _Scene:
  cup, held = env.task.config.cup, is_held(env.physics, CUP)
  x, y, z = env.task.grip_position(env.physics).tolist()
  if not held:
    x, y = x + mistake.x_m, y + mistake.y_m
  east, north = env.layout.bowls[0]
  return _Scene(
    robot=Forecast.of(env),
    grasp=Grasp(
      2 * (cup.radius + cup.thickness), HOVER_M, open_width=OPEN_WIDTH_M, at_yaw=LEVEL_RAD, upright=UPRIGHT_RAD),
    place=[x, y, z],
    lean=math.acos(min(float(env.physics.object_axis(CUP)[2]), 1.0)),
    held=held,
    bowl=(east + mistake.x_m, north + mistake.y_m),
  )


def _tick(scene: _Scene) -> tuple[float, ...]:
  """Returns the next action [5] and advances the imagined scene by it."""
  robot, grasp = scene.robot, scene.grasp
  if scene.held:
    motion = _pour(scene)
  elif grasp.closing(robot, scene.place):
    motion = CLOSE
  else:
    motion = _approach(scene)
  before = robot.measured
  action, caught = grasp.move(robot, motion, around=grasp.around(robot, scene.place))
  if scene.held:
    scene.place = [c + now - then for c, now, then in zip(scene.place, robot.measured, before)]
  else:
    scene.held = caught
  return action


def _approach(scene: _Scene) -> Motion:
  """Returns the motion over the cup and down around it; the hand turns about its own axis, so at any height."""
  turn = -scene.robot.yaw
  motion = approach(scene.robot, scene.grasp, Aim(scene.place, turn, scene.lean))
  return motion._replace(turn=_slowly(turn)) if motion.gripper_open else motion


def _pour(scene: _Scene) -> Motion:
  """Returns the motion that lifts, goes to beside the bowl, and tips the nearer the further."""
  robot = scene.robot
  x, y, z = robot.settled(scene.place)
  dx, dy = scene.bowl[0] + POUR_FROM_M[0] - x, scene.bowl[1] + POUR_FROM_M[1] - y
  distance = max(math.hypot(dx, dy), abs(POUR_M - z))
  tipped = share((_TIP_FROM_M - distance) / (_TIP_FROM_M - _TIP_FULLY_M))
  step, _ = descend(dx, dy, height=z, floor=POUR_M, clearance=math.inf)
  return Motion(step, _slowly(POUR_TURN_RAD * tipped - robot.yaw), False)


def _slowly(turn: float) -> float:
  return min(max(turn, -TURN_SPEED_RAD), TURN_SPEED_RAD)
