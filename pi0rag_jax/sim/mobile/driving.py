"""Where to drive: rules from the base's place to its velocities, with no memory of the way that it came."""

import math

import numpy as np

from pi0rag_jax.robots.mobile import SPEED, TURN
from pi0rag_jax.sim.mobile import flat, scene
from pi0rag_jax.sim.mobile.physics import Physics

_TURN_GAIN, _SPEED_GAIN = 2.5, 1.5  # rad/s per rad, m/s per m
_TURN_FIRST_RAD = 0.7  # off by which the base turns on the spot
_DOORWAY_M, _DOOR_LANE_M, _BEYOND_M = 0.5, 0.15, 0.75
_BACK_SPEED, _TIP_M, _CLEAR_M = -0.35, 0.07, 0.08
CONE, STANDOFF_M = 0.25, 0.95  # things are approached within this cone, from there


def drive(physics: Physics, goal_2: np.ndarray) -> tuple[float, float]:
  """Returns (forward, turn) of the way to a place, through doors; backwards first, where the arm is over furniture."""
  if _over_furniture(physics):
    return _BACK_SPEED, 0.0
  ahead, left = physics.in_base(waypoint(physics.base, goal_2))
  bearing, distance = math.atan2(left, ahead), math.hypot(ahead, left)
  forward = min(_SPEED_GAIN * distance, SPEED) * max(0.0, 1 - abs(bearing) / _TURN_FIRST_RAD)
  return forward, turn_to(bearing)


def turn_to(bearing: float) -> float:
  """Returns the turn that brings a bearing to zero, rad/s."""
  return min(max(_TURN_GAIN * bearing, -TURN), TURN)


def waypoint(base_2: np.ndarray, goal_2: np.ndarray) -> np.ndarray:
  """Returns the place float[2] to head for now: the goal in the same room, else before or behind the next door."""
  here, there = flat.room_at(base_2), flat.room_at(goal_2)
  leads_to = "" if here == there else flat.next_room(here, there)
  for room in flat.ROOMS:
    middle_2, through_2 = flat.door(here, room)
    if np.abs(through_2).sum() != 1:  # no neighbour
      continue
    before, lateral = _lane(base_2, middle_2, through_2)
    if before < _DOORWAY_M and lateral < flat.DOOR_HALF_M:
      return middle_2 + through_2 * (_BEYOND_M if room == leads_to else -_BEYOND_M)
  if not leads_to:
    return goal_2
  middle_2, through_2 = flat.door(here, leads_to)
  before, lateral = _lane(base_2, middle_2, through_2)
  in_lane = lateral < _DOOR_LANE_M + 0.3 * max(before - _DOORWAY_M, 0.0)
  return middle_2 + through_2 * (_BEYOND_M if in_lane else -_BEYOND_M)


def approach(physics: Physics, place_2: np.ndarray, inward_2: np.ndarray, stop_m: float, *, ready: bool
             ) -> tuple[float, float]:
  """Returns (forward, turn) of the way to where a place on furniture is `stop_m` ahead.

  Args:
    inward_2: into the furniture, of length 1.
    ready: whether the arm may go near the place; it waits or withdraws else.
  """
  away_2 = place_2 - physics.base
  deep, aside = float(away_2 @ inward_2), abs(float(away_2 @ inward_2[::-1]))
  if physics.room != flat.room_at(place_2) or deep > 1.2 or aside > CONE * max(deep, 0.0):
    return drive(physics, place_2 - STANDOFF_M * inward_2)
  ahead, left = physics.in_base(place_2)
  bearing, left_over = math.atan2(left, ahead), math.hypot(ahead, left) - stop_m
  turn, back = turn_to(bearing), _BACK_SPEED * max(math.cos(bearing), 0.0)
  if not ready and left_over < 0.25:
    return (back if left_over < 0.15 else 0.0), turn
  if abs(bearing) > 0.35:
    return (back if left_over < 0.0 else 0.0), turn
  return min(max(_SPEED_GAIN * left_over, -0.15), 0.4) * max(0.0, 1 - abs(bearing) / 0.35), turn


def _lane(base_2: np.ndarray, middle_2: np.ndarray, through_2: np.ndarray) -> tuple[float, float]:
  """Returns (how far it is to a door, how far beside its middle)."""
  away_2 = middle_2 - base_2
  return float(away_2 @ through_2), abs(float(away_2 @ through_2[::-1]))


def _over_furniture(physics: Physics) -> bool:
  """Returns whether the fingers are over a piece of furniture, or just before it."""
  tip = scene.GRASP_FORWARD_M + physics.reach + _TIP_M
  tip_2 = physics.base + tip * np.array([math.cos(physics.yaw), math.sin(physics.yaw)])
  room = physics.room
  for piece in flat.FURNITURE.values():
    if piece.room == room:
      deep = float((tip_2 - piece.spot()) @ piece.inward)
      aside = abs(float(tip_2[1 - piece.wall]) - piece.along)
      if deep > -_CLEAR_M and aside < piece.width / 2 + _CLEAR_M:
        return True
  return False
