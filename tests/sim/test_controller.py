"""Tests of Cartesian control: bounds, tracking, inverse kinematics."""

import math

import mujoco
import numpy as np
import pytest

from pi0rag_jax.sim import panda
from pi0rag_jax.sim.controller import (
  MAX_STEP_M,
  MAX_TURN_RAD,
  InverseKinematics,
  Workspace,
  advance_pose,
)
from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.panda import HOME_Q
from pi0rag_jax.sim.tasks.pouring import POUR_WORKSPACE


@pytest.fixture
def env():
  made = PandaEnv(render_images=False)
  made.reset(seed=0)
  made.controller.reset((0.5, 0.0, 0.25, 0.0))
  made.physics.refresh()
  return made


def test_each_step_is_bounded():
  pose = advance_pose((0.5, 0.0, 0.2, 0.0), (1.0, -1.0, 0.004, 1.0, 0.0), Workspace())
  np.testing.assert_allclose(pose, (0.5 + MAX_STEP_M, -MAX_STEP_M, 0.204, MAX_TURN_RAD))


def test_the_commanded_pose_stays_in_the_workspace():
  pose, space = (0.5, 0.0, 0.2, 0.0), Workspace()
  for _ in range(100):
    pose = advance_pose(pose, (1.0, -1.0, -1.0, 1.0, 0.0), space)
  np.testing.assert_allclose(pose, (space.high[0], space.low[1], space.low[2], space.high[3]))


def _hand(q) -> tuple[np.ndarray, np.ndarray]:
  """Returns (position [3], axes float[3, 3] in columns) of the drawing's tool at the joint angles `q`."""
  model = mujoco.MjModel.from_xml_string(panda.kinematic_xml())
  data = mujoco.MjData(model)
  data.qpos[:] = q
  mujoco.mj_kinematics(model, data)
  return data.site("tool").xpos, data.site("tool").xmat.reshape(3, 3)


@pytest.mark.parametrize(("heading", "x", "y"), [(0.0, 1.0, 0.0), (0.9, math.cos(0.9), math.sin(0.9))])
def test_a_tilted_hand_points_to_its_heading_and_turns_about_its_own_axis(heading, x, y):
  tilt, yaw = 0.8, 0.6
  workspace = Workspace(tilt_rad=tilt, heading_rad=heading)
  solver, q = InverseKinematics(workspace), np.array(HOME_Q)
  for _ in range(12):
    q = solver.solve(q, (0.5, 0.05, 0.2), yaw)
  position, axes = _hand(q)
  np.testing.assert_allclose(position, (0.5, 0.05, 0.2), atol=1e-4)
  np.testing.assert_allclose(axes[:, 2], (np.sin(tilt) * x, np.sin(tilt) * y, -np.cos(tilt)), atol=1e-3)
  np.testing.assert_allclose(axes, workspace.tool_axes(yaw), atol=1e-3)
  # At yaw 0 the closing axis is level, at pi / 2 the hand has turned counterclockwise seen against its fingers.
  np.testing.assert_allclose(np.array(workspace.tool_axes(0.0))[:, 1], (y, -x, 0.0), atol=1e-12)
  np.testing.assert_allclose(np.array(workspace.tool_axes(np.pi / 2))[:, 0], (-y, x, 0.0), atol=1e-12)


def test_the_default_hand_points_straight_down():
  c, s = math.cos(0.3), math.sin(0.3)
  assert Workspace().tool_axes(0.3) == ((c, s, 0.0), (s, -c, 0.0), (0.0, 0.0, -1.0))


def test_a_level_hand_reaches_and_pours_everywhere_in_its_workspace_without_a_jump():
  solver, (low, high) = InverseKinematics(POUR_WORKSPACE), (POUR_WORKSPACE.low, POUR_WORKSPACE.high)
  for x in (low[0], high[0]):
    for y in (low[1], high[1]):
      q = np.array(POUR_WORKSPACE.home_q)
      for _ in range(8):
        q = solver.solve(q, (x, y, 0.15), 0.0)
      for yaw in np.arange(0.0, low[3], -0.07):
        before, q = q, solver.solve(q, (x, y, 0.15), yaw)
        assert abs(q - before).max() < 0.12
      np.testing.assert_allclose(solver.position(q), (x, y, 0.15), atol=2e-3)


def test_the_measured_turn_is_the_commanded_one_of_a_level_hand():
  env = PandaEnv("pouring", render_images=False)
  env.reset(seed=0)
  for yaw in (0.2, -0.5, -2.2):
    env.controller.reset((0.5, 0.0, 0.25, yaw))
    env.physics.refresh()
    position, measured = env.controller.measured_pose()
    np.testing.assert_allclose((*position, measured), (0.5, 0.0, 0.25, yaw), atol=2e-3)


def test_inverse_kinematics_reaches_the_corners_of_the_table():
  solver = InverseKinematics()
  for x in (0.32, 0.68):
    for y in (-0.25, 0.25):
      for z, yaw in ((0.02, 0.7), (0.3, -0.7)):
        q = np.array(HOME_Q)
        for _ in range(6):
          q = solver.solve(q, (x, y, z), yaw)
        np.testing.assert_allclose(solver.position(q), (x, y, z), atol=5e-4)


def test_the_tool_goes_where_it_is_commanded(env):
  action = [0.01, 0.008, -0.01, 0.05, 1.0]
  for _ in range(10):
    env.controller.tick(action)
  position, _ = env.controller.measured_pose()
  lag = np.linalg.norm(np.subtract(env.controller.state.pose[:3], position))
  assert lag < 0.02
  for _ in range(10):
    env.controller.tick([0.0, 0.0, 0.0, 0.0, 1.0])
  position, yaw = env.controller.measured_pose()
  np.testing.assert_allclose(position, (0.6, 0.08, 0.15), atol=1.5e-3)
  assert yaw == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("command", "width"), [(0.5, 0.08), (0.49, 0.0)])
def test_the_gripper_opens_from_one_half(env, command, width):
  for _ in range(8):
    env.controller.tick([0.0, 0.0, 0.0, 0.0, command])
  assert env.physics.gripper_width() == pytest.approx(width, abs=1e-3)
  assert env.controller.state.gripper_open == (command >= 0.5)
