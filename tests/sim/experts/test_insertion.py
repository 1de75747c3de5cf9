"""Tests of the expert: it inserts, bears errors and disturbances, and its plan is what it then does."""

import numpy as np
import pytest

from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.experts import Mistake, get_expert
from pi0rag_jax.sim.experts.insertion import GRIP_M
from pi0rag_jax.sim.tasks.insertion import PEG

EXPERT = get_expert("insertion")
STAY_CLOSED, STAY_OPEN = np.array([0, 0, 0, 0, 0.0]), np.array([0, 0, 0, 0, 1.0])


@pytest.fixture(scope="module")
def env() -> PandaEnv:
  return PandaEnv("insertion", render_images=False)


def _finish(env: PandaEnv) -> bool:
  """Follows the expert's plans, 4 steps of each, to the end; returns whether it succeeded."""
  while True:
    _, terminated, truncated, info = env.advance(EXPERT.plan(env, 4))
    if terminated or truncated:
      assert info["sim_error"] is None
      return terminated


def _grasped(env: PandaEnv) -> bool:
  return env.task.privileged(env.physics, env.layout)["grasped"]


def _lift(env: PandaEnv) -> None:
  """Follows the expert until the tip is 6 cm over the table."""
  while env.physics.object_pose(PEG)[0][2] < 0.06:
    env.advance(EXPERT.plan(env, 1))


@pytest.mark.parametrize("error_mm", [3, 6])
def test_it_inserts_where_it_misjudges_the_hole(env, error_mm):
  """Once the peg is held only the believed hole is off; the chamfer and the arm's compliance have to take it."""
  for seed, direction in enumerate((0.4, 2.0, 3.6)):
    mistake = Mistake(*(0.001 * error_mm * np.array([np.cos(direction), np.sin(direction)])))
    env.reset(seed=seed)
    terminated = truncated = False
    while not (terminated or truncated):
      believed = {"mistake": mistake} if _grasped(env) else {}
      _, terminated, truncated, _ = env.advance(EXPERT.plan(env, 4, **believed))
    assert terminated and env.ticks < 90, seed


def test_it_subtracts_how_the_peg_hangs_in_the_fingers(env):
  env.reset(seed=3)
  x, y = env.layout.pegs[0]
  env.controller.reset((x + 0.008, y + 0.004, GRIP_M - 0.006, 0.0))
  env.physics.refresh()
  env.advance(np.tile(STAY_CLOSED, (8, 1)))
  assert abs(env.physics.fingertip_pose()[0][0] - env.physics.object_pose(PEG)[0][0]) > 0.006
  assert _finish(env) and env.ticks < 80


def test_it_recovers_from_a_miss_and_from_a_drop(env):
  for seed in range(3):
    env.reset(seed=seed)
    while env.physics.fingertip_pose()[0][2] > 0.115:
      env.advance(EXPERT.plan(env, 1))
    env.advance(np.tile(STAY_CLOSED, (6, 1)))  # closed above the peg
    assert env.physics.gripper_width() < 0.002
    _lift(env)
    env.advance(np.tile(STAY_OPEN, (4, 1)))
    assert _finish(env), seed


def test_it_lets_go_of_a_peg_that_lies_in_the_fingers(env):
  env.reset(seed=1)
  _lift(env)
  start = env.physics.model.joint(PEG).qposadr[0]
  tip = env.physics.object_pose(PEG)[0]
  env.physics.data.qpos[start : start + 7] = [tip[0] + GRIP_M, tip[1], tip[2] + GRIP_M, 0.5**0.5, 0.0, -(0.5**0.5), 0.0]
  env.advance(STAY_CLOSED[None])
  assert _grasped(env) and abs(env.physics.object_axis(PEG)[2]) < 0.5
  assert EXPERT.act(env)[4] == 1.0
  assert _finish(env)


def test_it_recovers_from_random_bursts(env):
  rng = np.random.default_rng(0)
  for seed in range(6):
    env.reset(seed=seed)
    for _ in range(2):
      env.advance(EXPERT.plan(env, int(rng.integers(8, 24))))
      env.advance(rng.uniform(env.action_space.low, env.action_space.high, (3, 5)))
    assert _finish(env), seed


def test_a_mistaken_expert_goes_beside_the_peg_and_recovers_once_it_knows(env):
  mistake = Mistake(x_m=0.06, y_m=-0.03)
  env.reset(seed=2)
  while env.physics.fingertip_pose()[0][2] > 0.08 and env.ticks < 80:
    env.advance(EXPERT.plan(env, 1, mistake))
  beside = env.physics.fingertip_pose()[0][:2] - env.physics.object_pose(PEG)[0][:2]
  np.testing.assert_allclose(beside, [0.06, -0.03], atol=0.01)
  assert _finish(env)


def test_it_grasps_across_a_close_neighbour(env):
  env.reset(seed=0)
  env.physics.place_object(PEG, (0.5, 0.0, 0.0), 0.0)
  env.physics.place_object("peg_1", (0.5, 0.055, 0.0), 0.0)
  env.controller.reset((0.5, 0.0, 0.2, 0.0))
  env.physics.refresh()
  assert abs(EXPERT.plan(env, 40)[:, 3].sum()) == pytest.approx(np.pi / 4, abs=0.04)
  assert _finish(env)


def test_a_plan_is_what_replanning_does(env):
  differences = []
  for seed in range(3):
    env.reset(seed=seed)
    terminated = False
    while not terminated:
      plan, start = EXPERT.plan(env, 8), np.array(env.controller.state.pose)
      for _ in range(8):
        terminated = env.advance(EXPERT.plan(env, 1))[1]
        if terminated:
          break
      else:
        differences.append(np.abs(start + plan[:, :4].sum(axis=0) - env.controller.state.pose).max())
  assert np.mean(differences) < 0.004 and np.max(differences) < 0.03


def test_planning_changes_nothing_and_is_deterministic(env):
  env.reset(seed=1)
  env.advance(EXPERT.plan(env, 30))
  before, state = env.physics.snapshot(), env.controller.state
  first, second = EXPERT.plan(env, 32), EXPERT.plan(env, 32)
  assert np.array_equal(first, second) and first.dtype == np.float32
  assert np.array_equal(before, env.physics.snapshot()) and env.controller.state == state
  assert all(action in env.action_space for action in first)


def test_the_arm_touches_nothing_and_is_not_blocked_on_the_way(env):
  for seed in range(3):
    env.reset(seed=seed)
    terminated = False
    while not terminated:
      _, terminated, _, info = env.advance(EXPERT.plan(env, 1))
      assert info["failure_signals"]["contact_force_arm_N"] < 1.0
      assert np.abs(env.observe()["state"][7:]).max() < 0.02
