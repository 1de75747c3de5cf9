"""A cheap forecast of the robot for experts: where the real fingertips go when an action is commanded."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pi0rag_jax.sim import panda
from pi0rag_jax.sim.controller import MAX_STEP_M, MAX_TURN_RAD, advance_pose

if TYPE_CHECKING:
  from pi0rag_jax.sim.env import PandaEnv

# Measured on this arm and hand, per control tick of 50 ms.
_LAG_KEPT = 0.58  # of the last tick's lag
_LAG_OF_STEP = 0.37  # of the step commanded now
_GRIP_KEPT = 0.29  # of the gripper's distance to where it is going

Point = tuple[float, float, float]


class Frames:
  """Maps between the tool pose that the controller believes and the real fingertip centre."""

  def __init__(self, env: "PandaEnv"):
    self._controller = env.controller
    self.workspace = env.controller.workspace
    self._offset = env.condition.tool_offset_m
    self._identical = not any(self._offset) and not env.condition.calibration.active

  def real(self, pose) -> Point:
    """Returns the fingertip position [3] in m when the believed tool pose is `pose` [4]."""
    if self._identical:
      return pose[0], pose[1], pose[2]
    (x, y, z), yaw = self._controller.nominal_pose(pose)
    dx, dy, dz = self._turned_offset(yaw)
    return x + dx, y + dy, z + dz

  def believed(self, position, yaw: float) -> Point:
    """Returns the believed tool position [3] that puts the fingertips at `position` [3] with `yaw`."""
    if self._identical:
      x, y, z = position
      return x, y, z
    dx, dy, dz = self._turned_offset(yaw)
    return self._controller.believed_position((position[0] - dx, position[1] - dy, position[2] - dz))

  def _turned_offset(self, yaw: float) -> Point:
    """Returns the tool offset in the base frame."""
    x, y, z = self._offset
    first, second, third = ((a * x + b * y + c * z) for a, b, c in self.workspace.tool_axes(yaw))
    return first, second, third


@dataclasses.dataclass
class Forecast:
  """The robot as an expert imagines it, in real fingertip coordinates (m, rad)."""

  frames: Frames
  pose: tuple[float, float, float, float]  # believed, commanded
  commanded: Point
  lag: Point  # commanded minus measured
  width: float
  gripper_open: bool

  @classmethod
  def of(cls, env: "PandaEnv") -> "Forecast":
    """Returns the present state of `env`."""
    frames, state = Frames(env), env.controller.state
    commanded = frames.real(state.pose)
    measured = env.physics.fingertip_pose()[0].tolist()
    lag = tuple(c - m for c, m in zip(commanded, measured))
    return cls(frames, state.pose, commanded, lag, env.physics.gripper_width(), state.gripper_open)

  @property
  def yaw(self) -> float:
    """The commanded yaw."""
    return self.pose[3]

  @property
  def measured(self) -> Point:
    """Where the fingertips are."""
    (x, y, z), (dx, dy, dz) = self.commanded, self.lag
    return x - dx, y - dy, z - dz

  @property
  def trail(self) -> float:
    """The greatest component of the lag in m."""
    return max(abs(value) for value in self.lag)

  def settled(self, point: Sequence[float]) -> Point:
    """Returns where the held `point` [3] will be once the tool has caught up with its command."""
    x, y, z = (value + lag for value, lag in zip(point, self.lag))
    return x, y, z

  def move(self, step, turn: float, gripper_open: bool, grip_floor: float) -> tuple[float, ...]:
    """Advances by one tick and returns the env action [5] for it.

    Args:
      step: wanted fingertip displacement [3], m.
      turn: wanted yaw change, rad.
      gripper_open: the gripper command.
      grip_floor: width in m below which closing fingers cannot go.
    """
    yaw = self.yaw + min(max(turn, -MAX_TURN_RAD), MAX_TURN_RAD)
    wanted = self.frames.believed([c + s for c, s in zip(self.commanded, step)], yaw)
    action = [min(max(w - p, -MAX_STEP_M), MAX_STEP_M) for w, p in zip(wanted, self.pose)]
    action += [yaw - self.yaw, float(gripper_open)]
    self.pose = advance_pose(self.pose, action, self.frames.workspace)
    before, self.commanded = self.commanded, self.frames.real(self.pose)
    self.lag = tuple(
      _LAG_KEPT * lag + _LAG_OF_STEP * (now - then)
      for lag, now, then in zip(self.lag, self.commanded, before)
    )
    aim = panda.MAX_WIDTH_M if gripper_open else 0.0
    self.width = max(aim + (self.width - aim) * _GRIP_KEPT, grip_floor if not gripper_open else 0.0)
    self.gripper_open = gripper_open
    return tuple(action)
