"""How experts take hold of a thing: over it, then down around it in a funnel; the fingers close where it stands."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from pi0rag_jax.sim.controller import Workspace
from pi0rag_jax.sim.experts.funnel import AT_POINT_M, CLOSE, SETTLED_M, Motion, blocked_share, descend, share
from pi0rag_jax.sim.experts.kinematics import Forecast

YAW_LIMIT_RAD = Workspace().high[3] - 0.08
# Along the funnel: horizontal distance, yaw error, missing width and lean at which the tool must be at full height.
_FUNNEL_M, _FUNNEL_RAD, _FUNNEL_WIDTH_M, _FUNNEL_LEAN_RAD = 0.03, 0.35, 0.03, 0.1
_FINGER_M = 0.05  # from the middle of a thing to the open fingers around it


@dataclasses.dataclass(frozen=True)
class Grasp:
  """How the fingers go around a kind of thing. Metres, radians."""

  width: float  # of the thing between the fingers
  hover: float  # of the fingertips, where they clear the highest of these things that stands on the table
  open_width: float = 0.068  # wide enough to go around it or to leave it
  at_height: float = 0.004
  at_yaw: float = 0.03
  upright: float = math.inf  # it rights itself where it leans by more, once the fingers are out of its way
  # Between the fingertips and the place to grasp it at, where it is between the fingers.
  reach: float = 0.035
  reach_height: float = 0.03

  def around(self, robot: Forecast, place: Sequence[float]) -> bool:
    """Returns whether the thing to grasp at `place` [3] is between the fingers."""
    x, y, z = (p - m for p, m in zip(place, robot.measured))
    return math.hypot(x, y) < self.reach and abs(z) < self.reach_height

  def closing(self, robot: Forecast, place: Sequence[float]) -> bool:
    """Returns whether the fingers are on their way to the thing between them."""
    return not robot.gripper_open and robot.width > 0.95 * self.width and self.around(robot, place)

  def move(self, robot: Forecast, motion: Motion, *, around: bool) -> tuple[tuple[float, ...], bool]:
    """Advances the robot by a tick; returns (action [5], whether it now holds the thing that it was `around`)."""
    action = robot.move(*motion, self.width if around else 0.0)
    return action, around and not motion.gripper_open and robot.width < self.width + 0.001


@dataclasses.dataclass(frozen=True)
class Aim:
  """Where an expert wants the fingertips to close. Metres, radians."""

  place: Sequence[float]  # [3]
  turn: float  # still to go
  lean: float = 0.0  # of the thing
  hover: float = 0.0  # of the fingertips on the way there, where that has to be higher than usual
  may_close: bool = True


def approach(robot: Forecast, grasp: Grasp, aim: Aim) -> Motion:
  """Returns the next motion towards `aim`; it turns only where it may move sideways."""
  x, y, lowest = aim.place
  dx, dy, height = x - robot.commanded[0], y - robot.commanded[1], robot.commanded[2]
  distance, turn = math.hypot(dx, dy), abs(aim.turn)
  in_place = distance < AT_POINT_M and turn < grasp.at_yaw and abs(height - lowest) < grasp.at_height
  if in_place and aim.may_close and robot.width > grasp.open_width and robot.trail < SETTLED_M:
    return CLOSE
  up = max(
    (distance - AT_POINT_M) / _FUNNEL_M,
    (turn - grasp.at_yaw) / _FUNNEL_RAD,
    (grasp.open_width - robot.width) / _FUNNEL_WIDTH_M,
    (aim.lean - grasp.upright) / _FUNNEL_LEAN_RAD,
    blocked_share(robot),
  )
  floor = lowest + (max(grasp.hover, aim.hover) - lowest) * share(up)
  step, sideways = descend(dx, dy, height=height, floor=floor, clearance=height - grasp.hover)
  return Motion(step, aim.turn * sideways, True)


def fingers_meet(place: Sequence[float], yaw: float, others: Iterable[Sequence[float]], room_m: float) -> bool:
  """Returns whether open fingers of heading `yaw` around `place` leave one of the `others` less than `room_m`."""
  x, y = place[:2]
  # The fingers come down on both sides along the closing axis.
  east, north = _FINGER_M * math.sin(yaw), -_FINGER_M * math.cos(yaw)
  tips = ((x + east, y + north), (x - east, y - north))
  return any(math.dist(tip, other) < room_m for tip in tips for other in others)
