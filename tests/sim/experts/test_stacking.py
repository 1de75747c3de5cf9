"""Tests of the expert that builds towers: it succeeds, clears what is in the way, and rebuilds."""

import numpy as np
import pytest

from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.experts import Mistake, get_expert

TASKS = pytest.mark.parametrize("task", ["stacking", "stacking_three"])
EXPERT = get_expert("stacking")


def _finish(env: PandaEnv, steps: int = 4) -> bool:
  """Follows the expert's plans, `steps` of each, to the end; returns whether it succeeded."""
  while True:
    _, terminated, truncated, info = env.advance(EXPERT.plan(env, steps))
    if terminated or truncated:
      assert info["sim_error"] is None
      return terminated


def _started(task: str, seed: int) -> PandaEnv:
  env = PandaEnv(task, render_images=False)
  env.reset(seed=seed)
  return env


@TASKS
@pytest.mark.parametrize("steps", [1, 8])
def test_it_succeeds_and_the_arm_touches_nothing(task, steps):
  for seed in range(2):
    env, terminated = _started(task, seed), False
    while not terminated:
      _, terminated, truncated, info = env.advance(EXPERT.plan(env, steps))
      assert not truncated and info["failure_signals"]["contact_force_arm_N"] < 1.0
    assert env.ticks < 0.6 * env.task.time_limit, seed


def _pile(env: PandaEnv, *names: str) -> None:
  """Puts the cubes `names` on one another where the first lies."""
  x, y, z = env.physics.object_pose(names[0])[0]
  for level, name in enumerate(names[1:], 1):
    env.physics.place_object(name, (x + 0.004 * level, y - 0.003 * level, z + 0.05 * level), 0.1 * level)
  env.physics.refresh()


@pytest.mark.parametrize(
  ("task", "names"),
  [
    ("stacking", ("cube_1", "cube_2")),
    ("stacking", ("cube_0", "cube_1")),
    ("stacking", ("cube_2", "cube_1", "cube_0")),
    ("stacking_three", ("cube_0", "cube_1", "cube_2")),
    ("stacking_three", ("cube_2", "cube_0")),
  ],
  ids=["third on the base", "reversed", "tower on the third", "three reversed", "wrong one on the base"],
)
def test_it_takes_a_wrong_pile_apart(task, names):
  env = _started(task, 1)
  _pile(env, *names)
  assert _finish(env)


def test_it_rebuilds_a_tower_that_falls():
  env = _started("stacking_three", 2)
  while env.info()["privileged"]["target_position"][2] < 0.15:  # the last cube hangs over the other two
    env.advance(EXPERT.plan(env, 2))
  x, y, _ = env.physics.object_pose("cube_2")[0]
  env.physics.place_object("cube_1", (x + 0.08, y, 0.025), 0.3)
  env.physics.refresh()
  assert env.physics.contacts().holds("cube_0", 1.0)
  assert _finish(env)


@TASKS
def test_it_puts_a_wrong_cube_down_first(task):
  env = _started(task, 3)
  wrong = "cube_2" if task == "stacking" else "cube_0"
  x, y, z = env.physics.object_pose(wrong)[0]
  env.controller.reset((x, y, z, 0.0))
  env.physics.refresh()
  env.advance(np.tile([0, 0, 0, 0, 0.0], (6, 1)))
  env.advance(np.tile([0, 0, 0.012, 0, 0.0], (8, 1)))
  assert env.physics.contacts().holds(wrong, 1.0)
  while env.physics.contacts().holds(wrong, 1.0):
    env.advance(EXPERT.plan(env, 1))
  assert env.physics.object_pose(wrong)[0][2] < 0.03
  assert _finish(env)


def test_a_mistaken_expert_stacks_beside_and_mends_it():
  env, mistake = _started("stacking", 0), Mistake(x_m=0.0, y_m=-0.06)
  while not env.info()["privileged"]["grasped"]:
    env.advance(EXPERT.plan(env, 1))
  while env.info()["privileged"]["grasped"]:
    env.advance(EXPERT.plan(env, 1, mistake))
  beside = env.physics.object_pose("cube_0")[0] - env.physics.object_pose("cube_1")[0]
  np.testing.assert_allclose(beside[:2], [0.0, -0.06], atol=0.01)
  assert _finish(env)


@TASKS
def test_a_plan_is_what_replanning_does(task):
  env, differences, terminated = _started(task, 5), [], False
  while not terminated:
    plan, start = EXPERT.plan(env, 8), np.array(env.controller.state.pose)
    for _ in range(8):
      terminated = env.advance(EXPERT.plan(env, 1))[1]
      if terminated:
        break
    else:
      differences.append(np.abs(start + plan[:, :4].sum(axis=0) - env.controller.state.pose).max())
  assert np.mean(differences) < 0.004 and np.max(differences) < 0.03


@TASKS
def test_planning_changes_nothing_and_is_deterministic(task):
  env = _started(task, 1)
  env.advance(EXPERT.plan(env, 30))
  before, state = env.physics.snapshot(), env.controller.state
  first, second = EXPERT.plan(env, 32), EXPERT.plan(env, 32)
  assert np.array_equal(first, second) and first.dtype == np.float32
  assert np.array_equal(before, env.physics.snapshot()) and env.controller.state == state
  assert all(action in env.action_space for action in first)
