"""How each errand is done: rules from the present state to the next action, so that any moment can be planned from."""

import math

import numpy as np

from pi0rag_jax.robots.mobile import LIFT_M
from pi0rag_jax.sim.mobile import flat, scene, tasks
from pi0rag_jax.sim.mobile.driving import approach, drive, turn_to
from pi0rag_jax.sim.mobile.physics import Physics
from pi0rag_jax.sim.mobile.tasks import Errand

_REACH_M = 0.2  # of the arm over furniture
_STOP_M = scene.GRASP_FORWARD_M + _REACH_M  # from the base to what is grasped
_NEAR_M = 1.25  # from which on the arm gets ready
_AT_M, _BESIDE_M, _LEVEL_M = 0.03, 0.045, 0.03  # off by which fingers are around what they are to grasp
_LOOK_M = 0.85  # from what was to be found
_PULL_SPEED, _GRIPPED = -0.15, 0.25  # of the drawer, whose bar keeps closed fingers so far apart at most
_CLOSED, _OPEN = 0.0, 1.0


def act(errand: Errand, physics: Physics) -> np.ndarray:
  """Returns the action float32[5] for the present state."""
  rule = {tasks.GO: _go, tasks.FIND: _look, tasks.VISIT: _look, tasks.PICK: _pick, tasks.PUT: _put, tasks.OPEN: _open,
          tasks.CLOSE: _close}[errand.kind]
  return np.array(rule(errand, physics), np.float32)


def _go(errand: Errand, physics: Physics):
  return *drive(physics, tasks.target(errand, physics)[0]), tasks.TRAVEL_LIFT_M, 0.0, _OPEN


def _look(errand: Errand, physics: Physics):
  """Drives up to a thing or to furniture, and faces it."""
  place_2, _ = tasks.target(errand, physics)
  inward_2 = flat.FURNITURE[errand.furniture].inward
  return *approach(physics, place_2, inward_2, _LOOK_M, ready=True), tasks.TRAVEL_LIFT_M, 0.0, _OPEN


def _pick(errand: Errand, physics: Physics):
  if physics.holds(errand.thing):
    return 0.0, 0.0, tasks.CARRY_LIFT_M, physics.reach, _CLOSED
  place_2, bottom = tasks.target(errand, physics)
  return _grasp(physics, place_2, flat.FURNITURE[errand.furniture].inward, bottom + tasks.GRASP_HEIGHT_M)


def _put(errand: Errand, physics: Physics):
  table, (place_2, top) = flat.FURNITURE[errand.furniture], tasks.target(errand, physics)
  if not physics.holds(errand.thing):
    if tasks.lies_on_tray(errand, physics):
      return 0.0, 0.0, physics.lift, physics.reach, _OPEN
    home = flat.TABLES[flat.room_at(place_2)]
    return _grasp(physics, place_2, home.inward, top + tasks.GRASP_HEIGHT_M)
  if _around(physics, place_2):
    low = top + tasks.GRASP_HEIGHT_M
    down = physics.lift < low + 0.01
    return 0.0, 0.0, low, _REACH_M, _OPEN if down else _CLOSED
  bottom = physics.thing(errand.thing)[2] - flat.THINGS[errand.thing].half_height
  if physics.lift < tasks.CARRY_LIFT_M - 0.1 and bottom < tasks.CARRY_LIFT_M:  # first up, then away
    return 0.0, 0.0, tasks.CARRY_LIFT_M, physics.reach, _CLOSED
  near = _near(physics, place_2)
  motion = approach(physics, place_2, table.inward, _STOP_M, ready=not near or physics.reach > _REACH_M - 0.03)
  return *motion, tasks.CARRY_LIFT_M, _REACH_M if near else 0.0, _CLOSED


def _open(errand: Errand, physics: Physics):
  place_2, height = tasks.target(errand, physics)
  inward_2 = flat.DRESSER.inward
  if physics.holds("handle") or (physics.opening < _GRIPPED and _around(physics, place_2)):
    heading = math.atan2(inward_2[1], inward_2[0])
    return _PULL_SPEED, turn_to(math.remainder(heading - physics.yaw, math.tau)), height, _REACH_M, _CLOSED
  return _grasp(physics, place_2, inward_2, height)


def _close(errand: Errand, physics: Physics):
  """Pushes the drawer by its handle with closed fingers."""
  place_2, height = tasks.target(errand, physics)
  near = _near(physics, place_2)
  ready = abs(physics.lift - height) < _LEVEL_M and physics.reach > _REACH_M - 0.03 and physics.opening < 0.2
  motion = approach(physics, place_2, flat.DRESSER.inward, _STOP_M - 0.1,
                    ready=ready or math.hypot(*physics.in_base(place_2)) < _STOP_M + 0.1)
  return *motion, height if near else tasks.TRAVEL_LIFT_M, _REACH_M if near else 0.0, _CLOSED


def _grasp(physics: Physics, place_2: np.ndarray, inward_2: np.ndarray, height: float):
  """Drives up with open fingers at a height, and closes them around a place."""
  height = max(height, LIFT_M[0])
  level = abs(physics.lift - height) < _LEVEL_M
  if level and _around(physics, place_2):
    return 0.0, 0.0, height, _REACH_M, _CLOSED
  near = _near(physics, place_2)
  ready = level and physics.reach > _REACH_M - 0.03 and physics.opening > 0.8
  motion = approach(physics, place_2, inward_2, _STOP_M, ready=ready)
  return *motion, height if near else tasks.TRAVEL_LIFT_M, _REACH_M if near else 0.0, _OPEN


def _near(physics: Physics, place_2: np.ndarray) -> bool:
  """Returns whether a place is where the arm gets ready for it: not far, and roughly ahead."""
  ahead, left = physics.in_base(place_2)
  return (physics.room == flat.room_at(place_2) and math.hypot(ahead, left) < _NEAR_M
          and abs(math.atan2(left, ahead)) < 0.5)


def _around(physics: Physics, place_2: np.ndarray) -> bool:
  """Returns whether a place is between the fingers."""
  ahead, left = physics.in_base(place_2)
  return abs(ahead - scene.GRASP_FORWARD_M - physics.reach) < _AT_M and abs(left) < _BESIDE_M
