"""Tests of Physics: geometry, contacts, faults, snapshots."""

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.experts import get_expert


@pytest.fixture
def env():
  made = PandaEnv(render_images=False)
  made.reset(seed=2)
  return made


def test_objects_are_placed_where_asked(env):
  env.physics.place_object("cube_1", (0.5, 0.1, 0.025), 0.4)
  position, quaternion = env.physics.object_pose("cube_1")
  np.testing.assert_allclose(position, (0.5, 0.1, 0.025))
  assert np.linalg.norm(quaternion) == pytest.approx(1.0)
  assert env.physics.object_yaw("cube_1") == pytest.approx(0.4)
  assert env.physics.object_names() == env.task.cube_names


def test_the_axis_of_an_object_leans_with_it(env):
  start = env.physics.model.joint("cube_1").qposadr[0]
  env.physics.data.qpos[start + 3 : start + 7] = [np.cos(0.15), np.sin(0.15), 0.0, 0.0]
  np.testing.assert_allclose(env.physics.object_axis("cube_1"), (0.0, -np.sin(0.3), np.cos(0.3)), atol=1e-12)


def test_unknown_objects_list_the_valid_ones(env):
  with pytest.raises(Pi0RagError, match=r"unknown object 'cup'.*cube_target"):
    env.physics.object_pose("cup")


def test_a_grasped_cube_is_held_by_both_pads_at_its_width(env):
  x, y, yaw = env.layout.cubes[0]
  env.controller.reset((x, y, 0.025, yaw))
  env.advance(np.zeros((4, 5)))
  contacts = env.physics.contacts()
  assert contacts.holds("cube_target", 10.0) and not contacts.holds("cube_1", 0.0)
  assert contacts.arm_N == 0.0
  # 1500 N/m of the gripper's servo times 25 mm per finger, on two pads.
  assert contacts.pad_left_N == pytest.approx(18.7, abs=1.0)
  assert env.physics.gripper_width() == pytest.approx(0.05, abs=5e-4)


def test_pressing_the_table_shows_in_the_pad_forces(env):
  env.controller.reset((0.45, -0.3, 0.012, 0.0))
  state = env.controller.state
  env.advance(np.tile([0, 0, 0, 0, 1.0], (3, 1)))
  assert env.physics.contacts().pad_left_N == 0.0
  # Lower than the controller itself would command: fingertips 2 cm into the table.
  sunk = env.controller.inverse_kinematics.solve(np.array(state.q), (0.45, -0.3, -0.01), 0.0)
  env.physics.step([*sunk, 0.04], 100)
  env.physics.refresh()
  contacts = env.physics.contacts()
  assert min(contacts.pad_left_N, contacts.pad_right_N) > 10.0
  assert contacts.body_left == "world" and not contacts.holds("cube_target", 1.0)


def test_hand_contact_counts_as_arm_force(env):
  x, y, _ = env.layout.cubes[1]
  env.physics.place_object("cube_1", (x, y, 0.14), 0.0)
  env.controller.reset((x, y, 0.08, 0.0))
  env.physics.refresh()
  assert env.physics.contacts().arm_N > 1.0


@pytest.mark.parametrize(
  ("spoil", "reason"),
  [
    (lambda physics: physics.place_object("cube_1", (0.5, 0.0, -0.2), 0.0), "'cube_1' fell off the table"),
    (lambda physics: physics.data.qvel.__setitem__(0, 500.0), "speed 500 exceeds 300"),
    (lambda physics: physics.data.qpos.__setitem__(0, np.nan), "NaN"),
  ],
)
def test_faults_are_named(env, spoil, reason):
  assert env.physics.fault() is None
  spoil(env.physics)
  assert reason in env.physics.fault()


def test_a_fault_truncates_and_is_not_a_success(env):
  env.physics.place_object("cube_1", (0.5, 0.0, -0.2), 0.0)
  _, _, terminated, truncated, info = env.step(np.zeros(5, np.float32))
  assert truncated and not terminated
  assert "fell off" in info["sim_error"]


def test_restore_recomputes_contacts_bit_for_bit(env):
  expert = get_expert("pick_and_place")
  env.advance(expert.plan(env, 40))
  saved, contacts, tool = env.physics.snapshot(), env.physics.contacts(), env.physics.tool_pose()
  env.advance(expert.plan(env, 20))
  env.physics.restore(saved)
  assert env.physics.contacts() == contacts
  assert np.array_equal(env.physics.tool_pose()[0], tool[0])
  assert np.array_equal(env.physics.snapshot(), saved)
