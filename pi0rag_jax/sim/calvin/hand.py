"""Where the hand goes next: up, across and down; around a block or a handle. Nothing is remembered between ticks."""

import math

from pi0rag_jax.sim.calvin import table as at
from pi0rag_jax.sim.calvin.physics import WORKSPACE, Physics, turns_like
from pi0rag_jax.sim.controller import MAX_STEP_M, MAX_TURN_RAD

OPEN, CLOSED = 1.0, 0.0
SAFE_M = 0.285  # height at which the hand, with a block in it, passes over everything
_GRIP_ABOVE_M, _LOWEST_M = 0.006, 0.034  # of the fingertips above a block's middle, and at least above the floor
_OVER_M, _AROUND_M, _AT_M, _TURNED_RAD = 0.006, 0.03, 0.008, 0.08
_WIDE_M, _EMPTY_M = 0.06, 0.012  # fingers that are open, and that have closed on nothing
_SPREAD_M, _FINGER_M = 0.049, 0.013  # of an open finger's middle from between them, and half of it
_WIDEST_M = 0.034  # half of what goes between open fingers with ease


class Hand:
  """The Panda's hand at one moment: what it does next to get somewhere."""

  most_turn = WORKSPACE.high[3]

  def __init__(self, physics: Physics):
    self.physics = physics
    self.pose = physics.controller.state.pose  # commanded
    self.measured = physics.tool_pose()[0]
    self.closed = not physics.controller.state.gripper_open

  @property
  def stuck(self) -> bool:
    """Whether the hand stands on something: it does not get as low as it is told to."""
    return self.measured[2] - self.pose[2] > 0.012

  def go(self, pose_4, grip: float, *, step_m: float = MAX_STEP_M) -> list[float]:
    """Returns the action straight to a pose."""
    off = [goal - now for goal, now in zip(pose_4, self.pose)]
    far = max(math.dist(off[:3], (0.0, 0.0, 0.0)), 1e-9)
    scale = min(1.0, step_m / far)
    turn = min(max(off[3], -MAX_TURN_RAD), MAX_TURN_RAD)
    return [*(scale * value for value in off[:3]), turn, grip]

  def stay(self, grip: float) -> list[float]:
    """Returns the action that moves the fingers alone."""
    return [0.0, 0.0, 0.0, 0.0, grip]

  def rise(self, grip: float) -> list[float]:
    """Returns the action straight up; fingers that open first let go."""
    if grip == OPEN and self._lets_go():
      return self.stay(OPEN)
    x, y, _, yaw = self.pose
    return self.go((x, y, SAFE_M, yaw), grip)

  def over(self, place_2, within_m: float = _OVER_M) -> bool:
    """Returns whether the hand is, and was told to be, above a place."""
    return all(math.dist(where[:2], place_2[:2]) < within_m for where in (self.pose, self.measured))

  def reach(self, pose_4, grip: float) -> list[float]:
    """Returns the action on the way to a pose: up, across, down, with fingers that are closed or open."""
    low = self.pose[2] < SAFE_M - 0.01
    aligned = self.over(pose_4) and abs(self.pose[3] - pose_4[3]) < _TURNED_RAD
    if self.physics.held and (grip == CLOSED or self.closed):
      return self.stay(OPEN)
    if aligned:
      if not low and self.closed != (grip == CLOSED):
        return self.stay(grip)
      return self.go(pose_4, grip)
    if low and not (self.over(pose_4, 0.012) and self.pose[2] < pose_4[2] + 0.03):
      return self.rise(OPEN if grip == OPEN else CLOSED)
    height = max(SAFE_M, pose_4[2]) if not low else self.pose[2]
    return self.go((*pose_4[:2], height, pose_4[3]), grip)

  def grasp(self, pose_4, name: str) -> list[float] | None:
    """Returns the action that gets a thing between the fingers, which close at a pose; None where they hold it."""
    if self.physics.held == name:
      return None if self.closed else self.stay(CLOSED)
    around = math.dist(self.measured[:2], pose_4[:2]) < _AROUND_M and abs(self.measured[2] - pose_4[2]) < _AT_M
    if self.closed and around and self.physics.gripper_width() > _EMPTY_M:
      return self.stay(CLOSED)
    if self.closed:
      return self.rise(OPEN)
    aligned = self.over(pose_4) and abs(self.pose[3] - pose_4[3]) < _TURNED_RAD
    if aligned and abs(self.measured[2] - pose_4[2]) < _AT_M and self.physics.gripper_width() > _WIDE_M:
      return self.stay(CLOSED)
    return self.reach(pose_4, OPEN)

  def grasp_block(self, name: str, *, room: float = 0.0) -> list[float] | None:
    """Returns the action that gets a block between the fingers, None where they hold it.

    Args:
      room: by which it will be turned, rad; of like grasps the one that leaves most of that.
    """
    (x, y, z), along = self.physics.block(name), self.physics.object_yaw(name)
    across = [turn for turn in turns_like(along, math.pi / 2) if turn not in turns_like(along)]
    if z < at.TOP_M - at.HALF_HEIGHT_M:  # in the drawer the hand has room across the way alone
      yaw = min((*turns_like(along), *across), key=abs)
    else:
      fits = across if at.BLOCK_HALF_M[name][0] < _WIDEST_M else ()
      missing = lambda turn: max(abs(turn + room) - self.most_turn, 0.0)  # noqa: E731
      yaw = min((*turns_like(along), *fits), key=lambda turn: (
        self._in_the_way(name, turn), round(missing(turn), 1), turn in across, abs(turn - self.pose[3])))
    return self.grasp((x, y, self.grip_height(name), yaw), name)

  def _in_the_way(self, name: str, turn: float) -> bool:
    """Returns whether an open finger would come down on another block."""
    x, y, z = self.physics.block(name)
    for sign in (-1, 1):
      finger_2 = x - sign * _SPREAD_M * math.sin(turn), y + sign * _SPREAD_M * math.cos(turn)
      for other in at.BLOCKS:
        place_3, half_3 = self.physics.block(other), self.physics.half_extents(other)
        if other != name and abs(place_3[2] - z) < 2 * at.HALF_HEIGHT_M and all(
            abs(finger_2[axis] - place_3[axis]) < half_3[axis] + _FINGER_M for axis in (0, 1)):
          return True
    return False

  def grip_height(self, name: str) -> float:
    """Returns where the fingertips close around a block, m."""
    return max(float(self.physics.block(name)[2]) + _GRIP_ABOVE_M, _LOWEST_M)

  def _lets_go(self) -> bool:
    """Returns whether the fingers are on their way from what they held."""
    return self.closed or bool(self.physics.held)
