"""Cartesian control at 20 Hz: a commanded tool pose moves by bounded steps and the joints follow it."""

import dataclasses
import functools
import math

import mujoco
import numpy as np

from pi0rag_jax.sim import panda
from pi0rag_jax.sim.conditions import Calibration
from pi0rag_jax.sim.physics import Physics

PERIOD_S = 0.05
PIECES = 5
SUBSTEPS_PER_PIECE = 5
MAX_STEP_M = 0.015  # per tick: 0.30 m/s
MAX_TURN_RAD = 0.075  # per tick: 1.5 rad/s
# The servos damp absolute speed and so trail by 0.1 s; half of it is fed forward, all of it would be jerky.
FEEDFORWARD_S = 0.05
OPEN_M = panda.MAX_WIDTH_M / 2

# Damped least squares on the tool site's Jacobian.
_DAMPING = 0.05
_ITERATIONS = 8
_MAX_JOINT_STEP_RAD = 0.3
_NULLSPACE_GAIN = 0.1
_TOLERANCE = 2e-5  # m and rad


@dataclasses.dataclass(frozen=True)
class Workspace:
  """Where a task's tool may be: the commanded pose stays in a box, and the fingers keep pointing one way.

  They point down, or are tilted from there towards `heading_rad`. The pose's `yaw` turns the hand about its own
  axis: on the table where it points down, and a held cup upside down where it is nearly level.
  """

  low: tuple[float, float, float, float] = (0.28, -0.32, 0.012, -1.7)  # x, y, z in m, yaw in rad
  high: tuple[float, float, float, float] = (0.72, 0.32, 0.40, 1.7)
  tilt_rad: float = 0.0  # 0: straight down; pi / 2: level
  heading_rad: float = 0.0  # of the tilt on the table; 0: away from the base
  home_q: tuple[float, ...] = panda.HOME_Q  # rad; joint angles that inverse kinematics starts from and stays near

  @functools.cached_property
  def hand_axes(self) -> tuple[tuple[float, float, float], ...]:
    """The hand's x axis [3] at yaw 0 and at yaw pi / 2, and its z axis [3], which no yaw changes; base frame."""
    (c, s), (ct, st) = _cos_sin(self.heading_rad), _cos_sin(self.tilt_rad)
    return (ct * c, ct * s, st), (-s, c, 0.0), (st * c, st * s, -ct)

  def tool_axes(self, yaw: float) -> tuple[tuple[float, float, float], ...]:
    """Returns the rows of float[3, 3] whose columns are the hand's axes in the base frame."""
    c, s = _cos_sin(yaw)
    first, second, third = ((c * a + s * b, s * a - c * b, pointing) for a, b, pointing in zip(*self.hand_axes))
    return first, second, third

  def clip(self, pose) -> tuple[float, float, float, float]:
    """Returns the pose [4] in the box that is nearest to `pose` [4]."""
    x, y, z, yaw = (min(max(float(value), low), high) for value, low, high in zip(pose, self.low, self.high))
    return x, y, z, yaw


def _cos_sin(angle: float) -> tuple[float, float]:
  return math.cos(angle), math.sin(angle)


@dataclasses.dataclass(frozen=True)
class ControllerState:
  """All that the controller remembers between ticks."""

  pose: tuple[float, float, float, float]  # commanded believed tool x, y, z (m), yaw (rad)
  q: tuple[float, ...]  # the arm's joint targets, rad
  gripper_open: bool
  applied_q: tuple[float, ...] = ()  # the targets that the servos have got
  pending: tuple[tuple[tuple[float, ...], bool], ...] = ()  # (q, gripper open) that delayed servos have yet to get


class Controller:
  """Turns actions into actuator targets.

  It believes the drawing of the arm; `calibration` is its error. Targets reach the servos `delay_ticks` late.
  """

  def __init__(self, physics: Physics, calibration: Calibration, workspace: Workspace = Workspace(),
               *, delay_ticks: int = 0):
    self._physics = physics
    self._calibration = calibration
    self._delay_ticks = delay_ticks
    self.workspace = workspace
    self.inverse_kinematics = InverseKinematics(workspace)
    self.state = ControllerState((0.0, 0.0, 0.0, 0.0), panda.HOME_Q, True)

  def reset(self, pose) -> None:
    """Puts the arm, open and at rest, where the believed tool pose is `pose` [4] (x, y, z, yaw)."""
    pose = self.workspace.clip(pose)
    q = np.array(self.workspace.home_q)
    for _ in range(5):
      q = self.inverse_kinematics.solve(q, *self.nominal_pose(pose))
    q_tuple = tuple(q.tolist())
    self.state = ControllerState(pose, q_tuple, True, q_tuple, ((q_tuple, True),) * self._delay_ticks)
    self._physics.set_arm(q, panda.MAX_WIDTH_M)
    self._physics.data.ctrl[:] = [*q, OPEN_M]

  def tick(self, action) -> None:
    """Moves the commanded pose by `action` [5] (dx, dy, dz, dyaw, open) and simulates one period."""
    before = self.state
    pose = advance_pose(before.pose, action, self.workspace)
    wanted_q = tuple(self.inverse_kinematics.solve(before.q, *self.nominal_pose(pose)).tolist())
    wanted_open = bool(action[4] >= 0.5)
    (q_tuple, gripper_open), *pending = *before.pending, (wanted_q, wanted_open)
    self.state = ControllerState(pose, wanted_q, wanted_open, q_tuple, tuple(pending))
    q_before, q = np.array(before.applied_q), np.array(q_tuple)
    ctrl = np.empty(len(q) + 1)
    ctrl[-1] = OPEN_M if gripper_open else 0.0
    for piece in range(1, PIECES + 1):
      ctrl[:-1] = q_before + (q - q_before) * (piece / PIECES + FEEDFORWARD_S / PERIOD_S)
      self._physics.step(ctrl, SUBSTEPS_PER_PIECE)
    self._physics.refresh()

  def nominal_pose(self, pose) -> tuple[tuple[float, float, float], float]:
    """Returns (position [3], yaw) that the drawing's tool site really takes when `pose` [4] is believed."""
    x, y, z, yaw = pose
    if not self._calibration.active:
      return (x, y, z), yaw
    dx, dy, dz = self._calibration.displacement(x, y)
    return (x + dx, y + dy, z + dz), yaw

  def believed_position(self, position) -> tuple[float, float, float]:
    """Returns the believed position [3] of a tool that really is at `position` [3]; inverts `nominal_pose`."""
    x, y, z = map(float, position)
    believed = (x, y, z)
    if not self._calibration.active:
      return believed
    for _ in range(12):
      dx, dy, dz = self._calibration.displacement(believed[0], believed[1])
      believed = (x - dx, y - dy, z - dz)
    return believed

  def measured_pose(self) -> tuple[tuple[float, float, float], float]:
    """Returns (position [3], yaw) of the tool as proprioception believes it."""
    position, yaw = self._physics.tool_pose()
    return self.believed_position(position), yaw


def advance_pose(pose, action, workspace: Workspace) -> tuple[float, float, float, float]:
  """Returns the commanded pose [4] after one action [5]: each step bounded, the result in the workspace."""
  bounds = (MAX_STEP_M, MAX_STEP_M, MAX_STEP_M, MAX_TURN_RAD)
  steps = (min(max(float(step), -bound), bound) for step, bound in zip(action, bounds))
  return workspace.clip([value + step for value, step in zip(pose, steps)])


@functools.cache
def _kinematic_model() -> mujoco.MjModel:
  return mujoco.MjModel.from_xml_string(panda.kinematic_xml())


def home_tool_position() -> tuple[float, float, float]:
  """Returns the tool position [3] in m at the home joint angles."""
  solver = InverseKinematics()
  return tuple(solver.position(np.array(panda.HOME_Q)).tolist())


class InverseKinematics:
  """Joint angles for a tool in a workspace, from the drawing of the arm alone (its own MjData)."""

  def __init__(self, workspace: Workspace = Workspace()):
    self._tool_axes = workspace.tool_axes
    self._model = _kinematic_model()
    self._data = mujoco.MjData(self._model)
    self._site = self._model.site(panda.TOOL_SITE).id
    self._jacobian_6Q = np.zeros((6, self._model.nv))
    self._home = np.array(workspace.home_q)
    self._low, self._high = self._model.jnt_range.T

  def position(self, q) -> np.ndarray:
    """Returns the tool position [3] in m at the joint angles `q` [7]."""
    self._data.qpos[:] = q
    mujoco.mj_kinematics(self._model, self._data)
    return self._data.site_xpos[self._site].copy()

  def solve(self, q, position, yaw: float) -> np.ndarray:
    """Returns joint angles [7] near `q` [7] that bring the tool to `position` [3] with `yaw`.

    Where the pose is out of reach the result is the nearest that the damping allows.
    """
    q = np.array(q, dtype=float)
    wanted = np.array(self._tool_axes(yaw))
    for iteration in range(_ITERATIONS):
      error_6 = self._error(q, position, wanted)
      if iteration and abs(error_6).max() < _TOLERANCE:
        break
      q = np.clip(q + self._step(q, error_6, nullspace=iteration == 0), self._low, self._high)
    return q

  def _error(self, q, position, wanted) -> np.ndarray:
    """Returns float[6], wanted minus current position and rotation vector, and updates the Jacobian."""
    self._data.qpos[:] = q
    mujoco.mj_kinematics(self._model, self._data)
    mujoco.mj_comPos(self._model, self._data)
    mujoco.mj_jacSite(
      self._model, self._data, self._jacobian_6Q[:3], self._jacobian_6Q[3:], self._site
    )
    turn = wanted @ self._data.site_xmat[self._site].reshape(3, 3).T
    rotation = (turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1])
    error_6 = np.empty(6)
    error_6[:3] = position - self._data.site_xpos[self._site]
    error_6[3:] = rotation
    error_6[3:] *= 0.5
    return error_6

  def _step(self, q, error_6, *, nullspace: bool) -> np.ndarray:
    """Returns the bounded joint step [7]; `nullspace` adds a pull to the home posture."""
    jacobian_6Q = self._jacobian_6Q
    gram = jacobian_6Q @ jacobian_6Q.T
    gram.flat[::7] += _DAMPING**2
    pull = _NULLSPACE_GAIN * (self._home - q) if nullspace else np.zeros_like(q)
    step = jacobian_6Q.T @ np.linalg.solve(gram, error_6 - jacobian_6Q @ pull) + pull
    return step * min(1.0, _MAX_JOINT_STEP_RAD / max(abs(step).max(), 1e-9))
