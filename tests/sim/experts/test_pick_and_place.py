"""Tests of the expert: it succeeds everywhere, recovers, and its plan is what it then does."""

import numpy as np
import pytest

from pi0rag_jax.sim.conditions import condition_names
from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.experts import Mistake, get_expert
from pi0rag_jax.sim.experts.cube import AT_YAW_RAD

EXPERT = get_expert("pick_and_place")


def _finish(env: PandaEnv, steps: int) -> bool:
  """Follows the expert's plans, `steps` of each, to the end; returns whether it succeeded."""
  expert = get_expert(env.task.name)
  while True:
    _, terminated, truncated, info = env.advance(expert.plan(env, steps))
    if terminated or truncated:
      assert info["sim_error"] is None
      return terminated


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_it_succeeds_in_the_nominal_world(steps):
  env = PandaEnv(render_images=False)
  for seed in range(4):
    env.reset(seed=seed)
    assert _finish(env, steps), seed
    assert env.ticks < 110, seed


@pytest.mark.parametrize("condition", condition_names())
def test_it_succeeds_under_every_condition(condition):
  env = PandaEnv(condition=condition, render_images=False)
  for seed in range(20, 23):
    env.reset(seed=seed)
    assert _finish(env, 4), seed


def test_it_recovers_from_a_miss_and_from_a_drop():
  env = PandaEnv(render_images=False)
  for seed in range(2):
    env.reset(seed=seed)
    while env.physics.fingertip_pose()[0][2] > 0.08:
      env.advance(EXPERT.plan(env, 1))
    env.advance(np.tile([0, 0, 0, 0, 0.0], (5, 1)))  # closed above the cube
    assert env.physics.gripper_width() < 0.002
    while env.physics.object_pose("cube_target")[0][2] < 0.08:
      env.advance(EXPERT.plan(env, 1))
    env.advance(np.tile([0, 0, 0, 0, 1.0], (4, 1)))  # dropped from 5 cm
    assert _finish(env, 4), seed


def test_it_recovers_from_random_bursts():
  env, rng = PandaEnv(render_images=False), np.random.default_rng(0)
  for seed in range(6):
    env.reset(seed=seed)
    for _ in range(2):
      env.advance(EXPERT.plan(env, int(rng.integers(8, 24))))
      env.advance(rng.uniform(env.action_space.low, env.action_space.high, (3, 5)))
    assert _finish(env, 4), seed


def test_a_mistaken_expert_goes_beside_the_target_and_recovers_once_it_knows():
  env, mistake = PandaEnv(render_images=False), Mistake(x_m=0.08, y_m=-0.03, yaw_rad=0.3)
  for seed in range(3):
    env.reset(seed=seed)
    truth = EXPERT.plan(env, 1)
    while env.physics.fingertip_pose()[0][2] > 0.05 and env.ticks < 80:
      env.advance(EXPERT.plan(env, 1, mistake))
    beside = env.physics.fingertip_pose()[0][:2] - env.physics.object_pose("cube_target")[0][:2]
    np.testing.assert_allclose(beside, [0.08, -0.03], atol=0.01)
    assert _finish(env, 4), seed
    env.reset(seed=seed)
    np.testing.assert_array_equal(EXPERT.plan(env, 1), truth)


def test_it_turns_only_where_the_wrist_camera_shows_the_target():
  env = PandaEnv(render_images=False)
  for seed in range(6):
    env.reset(seed=seed)
    while env.physics.gripper_width() > 0.06:
      far = np.linalg.norm(env.physics.object_pose("cube_target")[0][:2] - env.controller.state.pose[:2]) > 0.08
      action = EXPERT.plan(env, 1)
      assert not (far and abs(action[0, 3]) > 1e-6), seed
      env.advance(action)


def test_a_plan_is_what_replanning_does():
  env = PandaEnv(render_images=False)
  differences = []
  for seed in range(3):
    env.reset(seed=seed)
    terminated = False
    while not terminated:
      plan = EXPERT.plan(env, 8)
      start, saved = np.array(env.controller.state.pose), env.snapshot()
      for _ in range(8):
        terminated = env.advance(EXPERT.plan(env, 1))[1]
        if terminated:
          break
      else:
        differences.append(np.abs(start + plan[:, :4].sum(axis=0) - env.controller.state.pose).max())
      assert not terminated or saved["ticks"] > 30
  assert np.mean(differences) < 0.004 and np.max(differences) < 0.03


def test_planning_changes_nothing_and_is_deterministic():
  env = PandaEnv(render_images=False)
  env.reset(seed=1)
  env.advance(EXPERT.plan(env, 30))
  before, state = env.physics.snapshot(), env.controller.state
  first, second = EXPERT.plan(env, 32), EXPERT.plan(env, 32)
  assert np.array_equal(first, second) and first.dtype == np.float32
  assert np.array_equal(before, env.physics.snapshot()) and env.controller.state == state
  assert np.array_equal(EXPERT.act(env), first[0])
  assert all(action in env.action_space for action in first)


def test_the_arm_touches_nothing_on_the_way():
  env = PandaEnv(render_images=False)
  for seed in range(3):
    env.reset(seed=seed)
    terminated = False
    while not terminated:
      _, terminated, _, info = env.advance(EXPERT.plan(env, 1))
      assert info["failure_signals"]["contact_force_arm_N"] < 1.0
      assert np.abs(env.observe()["state"][7:]).max() < 0.02


def test_it_grasps_across_a_close_neighbour():
  """With a neighbour where a finger would come down, the other pair of faces is taken."""
  env = PandaEnv(render_images=False)
  env.reset(seed=0)
  env.physics.place_object("cube_target", (0.5, 0.0, 0.025), 0.0)
  env.physics.place_object("cube_1", (0.5, 0.06, 0.025), 0.0)
  env.controller.reset((0.5, 0.0, 0.2, 0.0))
  env.physics.refresh()
  # The turn stops short by the error that the closing fingers take up.
  assert abs(EXPERT.plan(env, 40)[:, 3].sum()) == pytest.approx(np.pi / 2 - AT_YAW_RAD, abs=0.01)
  assert _finish(env, 4)
