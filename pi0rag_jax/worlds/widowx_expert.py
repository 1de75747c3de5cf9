"""An expert for the WidowX's tasks: a rule from the present state to where the hand goes next.

It remembers nothing, so that it may take over at any moment: what was dropped is picked up again.
"""

import dataclasses
import math

import mujoco
import numpy as np

from pi0rag_jax.worlds.rotations import angle_between, rotation_vector
from pi0rag_jax.worlds.widowx_arm import FINGERS, HIGH_M, STROKE_M, Hand, pointing_down
from pi0rag_jax.worlds.widowx_tasks import Task, Thing

OPEN, CLOSED = 1.0, 0.0
STEP_M, TURN_RAD = 0.04, 0.3  # most per tick
_TIP_M, _LEAST_M = 0.012, 0.007  # how far below a thing's middle the fingertips close, and their height at least
_ABOVE_M, _OVER_M, _AT_M, _LOW_M, _FACING_RAD = 0.06, 0.012, 0.012, 0.03, 0.15
_TOLD_M, _HANGS_M = 0.003, 0.025  # told to be there, the hand may hang so far off
_EMPTY = 0.08  # opening of a gripper that has closed on nothing
_PLACED_M, _ABOVE_TARGET_M, _DROP_M = 0.015, 0.025, 0.006
_CLEAR_M, _MOST_TURN_RAD = 0.03, 1.7  # between what is carried and what it passes over


@dataclasses.dataclass(frozen=True)
class Goal:
  """Where the hand goes: there, turned so, with the gripper so far open."""

  place_3: np.ndarray
  turn_33: np.ndarray
  grip: float


class Expert:
  """Puts a task's thing on its target."""

  def __init__(self, arm: mujoco.MjModel, hand: Hand, task: Task, thing: Thing):
    self._hand, self._task, self._thing = hand, task, thing
    self._body, self._target = arm.body(thing.name).id, arm.body(task.target.name).id
    self._model = arm
    self._fingers = [arm.body(name).id for name in FINGERS]

  def act(self, data: mujoco.MjData) -> np.ndarray:
    """Returns the next action float[7], as `robots.widowx` has them."""
    told_3, told_33 = self._hand.pose(data.ctrl[:6])
    goal = self._goal(data, told_3, told_33)
    step_3, turn_3 = goal.place_3 - told_3, rotation_vector(goal.turn_33 @ told_33.T)
    step_3 *= min(1.0, STEP_M / max(float(np.linalg.norm(step_3)), 1e-9))
    turn_3 *= min(1.0, TURN_RAD / max(float(np.linalg.norm(turn_3)), 1e-9))
    return np.concatenate([step_3, turn_3, [goal.grip]])

  def holds(self, data: mujoco.MjData) -> bool:
    """Returns whether both fingers touch the thing."""
    bodies = self._model.geom_bodyid[data.contact.geom[: data.ncon]]
    at_thing = (bodies == self._body).any(axis=1)
    return all(bool((at_thing & (bodies == finger).any(axis=1)).any()) for finger in self._fingers)

  def _goal(self, data: mujoco.MjData, told_3: np.ndarray, told_33: np.ndarray) -> Goal:
    closed = data.ctrl[6] < 0.5 * STROKE_M
    off_3 = data.xpos[self._target] - data.xpos[self._body]
    gap_m = self._lowest(data) - self._floor(data)
    if closed and self.holds(data):
      return self._carry(told_3, told_33, off_3, gap_m)
    if self._is_placed(off_3, gap_m):
      return Goal(np.array([*told_3[:2], HIGH_M[2]]) if not closed else told_3, told_33, OPEN)
    return self._pick(data, told_3, told_33, closed)

  def _carry(self, told_3: np.ndarray, told_33: np.ndarray, off_3: np.ndarray, gap_m: float) -> Goal:
    aside_m = float(np.linalg.norm(off_3[:2]))
    drop_m = 2 * self._task.target.half[2] if self._task.target.hollow else _DROP_M
    if aside_m < _PLACED_M:
      if gap_m <= drop_m:
        return Goal(told_3, told_33, OPEN)
      return Goal(told_3 + [off_3[0], off_3[1], 0.6 * drop_m - gap_m], told_33, CLOSED)
    clear_m = 2 * self._task.target.half[2] + _CLEAR_M if self._task.target.hollow else _CLEAR_M
    up_m = max(clear_m - gap_m, 0.0)
    if up_m > 0.5 * _CLEAR_M and told_3[2] < HIGH_M[2] - _TOLD_M and aside_m > 2 * _PLACED_M:
      return Goal(told_3 + [0.0, 0.0, up_m], told_33, CLOSED)
    return Goal(told_3 + [off_3[0], off_3[1], up_m], told_33, CLOSED)

  def _is_placed(self, off_3: np.ndarray, gap_m: float) -> bool:
    """Returns whether the thing lies where it belongs, or falls there."""
    if self._task.target.hollow:
      return bool((np.abs(off_3[:2]) < np.asarray(self._task.target.half[:2]) - 0.01).all())
    return bool(np.linalg.norm(off_3[:2]) < _ABOVE_TARGET_M and gap_m < _ABOVE_TARGET_M)

  def _pick(self, data: mujoco.MjData, told_3: np.ndarray, told_33: np.ndarray, closed: bool) -> Goal:
    """Returns the way to the thing: over it, down, and closed around it."""
    at_3, turn_33 = self._grasp(data, told_33)
    tip_3, now_33 = self._hand.pose(data.qpos[self._hand.qpos])
    opening = float(data.qpos[self._hand.fingers].mean()) / STROKE_M
    over_3, off_3 = at_3 + [0.0, 0.0, _ABOVE_M], tip_3 - at_3
    aside_m, far_m = float(np.linalg.norm(off_3[:2])), float(np.linalg.norm(off_3))
    near_m = _HANGS_M if closed or np.linalg.norm(told_3 - at_3) < _TOLD_M else _AT_M
    if closed and (opening < _EMPTY or far_m > near_m):  # closed on nothing
      return Goal(told_3 + [0.0, 0.0, 0.5 * STEP_M], told_33, OPEN)
    facing = angle_between(now_33, turn_33) < _FACING_RAD
    if far_m < near_m and (closed or (facing and opening > 0.8)):
      return Goal(told_3, told_33, CLOSED)
    if aside_m < _OVER_M and facing and opening > 0.8:
      return Goal(at_3, turn_33, OPEN)
    if aside_m > _OVER_M and off_3[2] < _LOW_M:  # not through what lies there
      return Goal(np.array([*told_3[:2], over_3[2]]), told_33, OPEN)
    return Goal(over_3, turn_33, OPEN)

  def _grasp(self, data: mujoco.MjData, told_33: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the fingertips close, and how the hand is turned: of like turns the one that is nearest."""
    axes_33 = data.xmat[self._body].reshape(3, 3)
    long_3 = axes_33[:, 0] if abs(axes_33[2, 0]) < 0.7 else axes_33[:, 1]
    alike, now = self._thing.like_turned, math.atan2(told_33[1, 2], told_33[0, 2])
    turn = math.atan2(long_3[1], long_3[0])
    turn += alike * round((now - turn) / alike)
    while abs(turn) > _MOST_TURN_RAD:
      turn -= math.copysign(alike, turn)
    at_3 = data.xpos[self._body] + self._thing.held_at * axes_33[:, 0]
    at_3[2] = max(at_3[2] - _TIP_M, _LEAST_M)
    return at_3, pointing_down(turn)

  def _lowest(self, data: mujoco.MjData) -> float:
    """Returns the height of the thing's underside."""
    return float(data.xpos[self._body][2] - np.abs(data.xmat[self._body][6:]) @ self._thing.half)

  def _floor(self, data: mujoco.MjData) -> float:
    """Returns the height on which the thing is to lie."""
    half_m = self._task.target.half[2]
    return float(data.xpos[self._target][2]) + (-half_m if self._task.target.hollow else half_m)
