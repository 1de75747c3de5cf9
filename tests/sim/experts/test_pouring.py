"""Tests of the expert: it pours, recovers, and its plan is what it then does."""

import numpy as np
import pytest

from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.experts import Mistake, get_expert
from pi0rag_jax.sim.tasks.pouring import CUP

EXPERT = get_expert("pouring")


@pytest.fixture(scope="module")
def env():
  return PandaEnv("pouring", render_images=False)


def _finish(env: PandaEnv, steps: int) -> bool:
  """Follows the expert's plans, `steps` of each, to the end; returns whether it succeeded."""
  while True:
    _, terminated, truncated, info = env.advance(EXPERT.plan(env, steps))
    if terminated or truncated:
      assert info["sim_error"] is None
      return terminated


@pytest.mark.parametrize(("seed", "steps"), [(0, 1), (2, 8)])
def test_it_pours_without_touching_anything_else(env, seed, steps):
  env.reset(seed=seed)
  while env.controller.state.pose[3] > -2.3:
    info = env.advance(EXPERT.plan(env, steps))[-1]
    assert info["failure_signals"]["contact_force_arm_N"] < 1.0
  assert _finish(env, 4) and env.ticks < 130


def test_it_spills_nothing_on_the_way(env):
  env.reset(seed=3)
  while not env.info()["privileged"]["grasped"] or abs(env.controller.state.pose[3]) < 0.05:
    env.advance(EXPERT.plan(env, 1))
    assert env.physics.object_axis(CUP)[2] > 0.99
  heights = [env.physics.object_pose(name)[0][2] for name in env.task.ball_names]
  assert min(heights) > env.physics.object_pose(CUP)[0][2]


def test_it_recovers_from_a_drop_and_from_a_turned_hand(env):
  env.reset(seed=1)
  env.advance(np.tile([0, 0, 0, -0.07, 1.0], (8, 1)))
  while env.physics.object_pose(CUP)[0][2] < 0.03:
    env.advance(EXPERT.plan(env, 1))
  env.advance(np.tile([0, 0, 0, 0, 1.0], (4, 1)))
  assert not env.info()["privileged"]["grasped"]
  assert _finish(env, 4)


def test_a_mistaken_expert_goes_beside_the_cup(env):
  env.reset(seed=2)
  mistake, truth = Mistake(x_m=-0.05, y_m=0.06), EXPERT.plan(env, 1)
  for _ in range(40):
    env.advance(EXPERT.plan(env, 1, mistake))
  beside = env.physics.fingertip_pose()[0][:2] - env.physics.object_pose(CUP)[0][:2]
  np.testing.assert_allclose(beside, [-0.05, 0.06], atol=0.01)
  env.reset(seed=2)
  np.testing.assert_array_equal(EXPERT.plan(env, 1), truth)


def test_a_plan_is_what_replanning_does(env):
  differences, terminated = [], False
  env.reset(seed=0)
  while not terminated:
    plan, start = EXPERT.plan(env, 8), np.array(env.controller.state.pose)
    for _ in range(8):
      terminated = env.advance(EXPERT.plan(env, 1))[1]
      if terminated:
        break
    else:
      differences.append(np.abs(start + plan[:, :4].sum(axis=0) - env.controller.state.pose).max())
  assert np.mean(differences) < 0.002 and np.max(differences) < 0.01


def test_planning_changes_nothing_and_is_deterministic(env):
  env.reset(seed=1)
  env.advance(EXPERT.plan(env, 30))
  before, state = env.physics.snapshot(), env.controller.state
  first, second = EXPERT.plan(env, 32), EXPERT.plan(env, 32)
  assert np.array_equal(first, second) and first.dtype == np.float32
  assert np.array_equal(before, env.physics.snapshot()) and env.controller.state == state
  assert all(action in env.action_space for action in first)
