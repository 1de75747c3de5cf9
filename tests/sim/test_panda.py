"""Tests of the robot model against the manufacturer's figures."""

import mujoco
import numpy as np
import pytest

from pi0rag_jax.sim import panda
from pi0rag_jax.sim.conditions import get_condition
from pi0rag_jax.sim.controller import InverseKinematics
from pi0rag_jax.sim.scene import SceneSpec, build_model


def test_tool_at_zero_angles_follows_from_the_dh_table():
  # Links straight up, then back over 8.8 cm and down by flange and hand.
  height = 0.333 + 0.316 + 0.384 - 0.107 - panda.TOOL_Z_M
  np.testing.assert_allclose(InverseKinematics().position(np.zeros(7)), (0.088, 0.0, height), atol=1e-9)


def test_kinematic_model_and_scene_agree():
  model = build_model(SceneSpec(), get_condition("nominal"))
  data = mujoco.MjData(model)
  solver, rng = InverseKinematics(), np.random.default_rng(0)
  for _ in range(5):
    q = rng.uniform(-1, 1, 7) + panda.HOME_Q
    data.qpos[:7] = q
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(data.site(panda.TOOL_SITE).xpos, solver.position(q), atol=1e-9)


def test_masses_and_home_are_within_the_published_limits():
  model = build_model(SceneSpec(), get_condition("nominal"))
  arm_kg = sum(model.body(f"link{i}").mass[0] for i in range(1, 8))
  assert arm_kg == pytest.approx(16.06, abs=0.01)
  limits = model.jnt_range[:7]
  assert np.all(limits[:, 0] < panda.HOME_Q) and np.all(limits[:, 1] > panda.HOME_Q)
