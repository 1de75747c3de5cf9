"""How experts move: heights are funnels over the distance to go, so that phases of a motion blend into each other."""

import math
from typing import NamedTuple

from pi0rag_jax.sim.experts.kinematics import Forecast, Point

# Per tick; below the bound, so that the demonstrations do not saturate. Slow is the last part of every descent.
FAST_M, SLOW_M = 0.012, 0.006
# So far below the funnel the tool first rises and does not move sideways.
RISE_FIRST_M = 0.04
AT_POINT_M = 0.006  # sideways
SETTLED_M = 0.0035  # the tool trails its command; act once it has caught up
# A tool that trails by more is blocked and must come up again; free motion trails by 13 mm at most.
_BLOCKED_M, _FUNNEL_BLOCKED_M = 0.018, 0.02


class Motion(NamedTuple):
  """What the tool does in a tick."""

  step: Point  # of the fingertips, m
  turn: float  # rad
  gripper_open: bool


CLOSE = Motion((0.0, 0.0, 0.0), 0.0, False)
OPEN = Motion((0.0, 0.0, 0.0), 0.0, True)


def descend(dx: float, dy: float, *, height: float, floor: float, clearance: float) -> tuple[Point, float]:
  """Returns (step [3], share of the sideways speed): towards (dx, dy) and to the funnel's floor.

  Args:
    dx, dy: the way to go sideways, m.
    height: m, of what moves.
    floor: m, of the funnel at this distance.
    clearance: m, by which the way down is free.
  """
  sideways = _sideways_share(height, floor)
  dz = min(max(floor - height, -_descent_speed(clearance)), FAST_M)
  return (*_bounded(dx, dy, FAST_M * sideways), dz), sideways


def blocked_share(robot: Forecast) -> float:
  """Returns how much of a funnel's height a tool has to rise because something is in its way; below 0: nothing is."""
  return (robot.trail - _BLOCKED_M) / _FUNNEL_BLOCKED_M


def _sideways_share(height: float, floor: float) -> float:
  """Returns the share [0, 1] of the sideways speed allowed at `height` when the funnel's floor is at `floor`."""
  return share(1.0 - (floor - height) / RISE_FIRST_M)


def _descent_speed(clearance: float) -> float:
  """Returns m per tick: fast where the way down is free by 3 cm, slow at the end."""
  return SLOW_M + (FAST_M - SLOW_M) * share(clearance / 0.03)


def _bounded(dx: float, dy: float, limit: float) -> tuple[float, float]:
  """Returns (dx, dy), shortened to `limit` where it is longer."""
  length = math.hypot(dx, dy)
  scale = 1.0 if length <= limit else limit / length
  return dx * scale, dy * scale


def share(value: float) -> float:
  """Returns `value`, kept within [0, 1]."""
  return min(max(value, 0.0), 1.0)
