"""Contract tests of the environment: every condition with one task, every task in the nominal world."""

import pickle
import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim.conditions import condition_names
from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.experts import get_expert
from pi0rag_jax.sim.tasks import task_names

COMBINATIONS = [("pick_and_place", condition) for condition in condition_names()]
COMBINATIONS += [(task, "nominal") for task in task_names() if task != "pick_and_place"]
TASKS = pytest.mark.parametrize("task", task_names())
TASKS_AND_CONDITIONS = pytest.mark.parametrize(("task", "condition"), COMBINATIONS)


def _trace(env: PandaEnv, chunks: int) -> list[bytes]:
  """Returns what following the expert for `chunks` decisions makes of the environment, to the bit."""
  expert, trace = get_expert(env.task.name), []
  for _ in range(chunks):
    outcome = env.advance(expert.plan(env, 4))
    trace.append(pickle.dumps((env.physics.snapshot(), env.observe(), outcome)))
  return trace


@TASKS_AND_CONDITIONS
def test_gymnasium_finds_no_fault(task, condition):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*not within the observation space bounds.*spec.*")
    check_env(PandaEnv(task, condition, image_size=16), skip_render_check=True)


@TASKS_AND_CONDITIONS
def test_observations_are_finite_in_the_space_and_not_constant(task, condition):
  env = PandaEnv(task, condition)
  first, _ = env.reset(seed=11)
  for action in get_expert(task).plan(env, 8):
    last, _, _, _, info = env.step(action)
    assert last in env.observation_space
    assert np.isfinite(last["state"]).all() and info["sim_error"] is None
  assert not np.allclose(first["state"], last["state"])
  for name, picture in last["image"].items():
    assert not np.array_equal(picture, first["image"][name])


@TASKS_AND_CONDITIONS
def test_a_seed_decides_the_episode(task, condition):
  first, second = PandaEnv(task, condition), PandaEnv(task, condition)
  for env in (first, second):
    env.reset(seed=5)
  assert _trace(first, 4) == _trace(second, 4)
  layout = first.layout
  first.reset()
  assert first.layout != layout


@TASKS_AND_CONDITIONS
def test_a_restored_snapshot_replays_to_the_bit_also_elsewhere(task, condition):
  env = PandaEnv(task, condition)
  env.reset(seed=6)
  env.advance(get_expert(task).plan(env, 32))
  saved, seen = pickle.dumps(env.snapshot()), pickle.dumps(env.observe())
  played = _trace(env, 4)
  next_layout = (env.reset(), env.layout)[1]
  other = PandaEnv(task)
  other.reset(seed=99)
  for target in (env, other, PandaEnv(task)):
    target.restore(pickle.loads(saved))
    assert pickle.dumps(target.observe()) == seen
    assert _trace(target, 4) == played
    target.reset()
    assert target.layout == next_layout


@TASKS
def test_rendering_does_not_touch_the_physics(task):
  seeing, blind = PandaEnv(task), PandaEnv(task, render_images=False)
  for env in (seeing, blind):
    env.reset(seed=3)
  plan = get_expert(task).plan(seeing, 8)
  for action in plan:
    seeing.step(action)
  blind.advance(plan)
  assert np.array_equal(seeing.physics.snapshot(), blind.physics.snapshot())
  assert not blind.observe()["image"]["base_0_rgb"].any()


@TASKS
def test_the_episode_is_truncated_at_the_time_limit(task):
  env = PandaEnv(task, render_images=False)
  env.reset(seed=0)
  still = np.tile([0, 0, 0, 0, 1.0], (env.task.time_limit + 20, 1))
  reward, terminated, truncated, info = env.advance(still)
  assert (reward, terminated, truncated, info["success"]) == (0.0, False, True, False)
  assert env.ticks == env.task.time_limit


def test_bad_actions_are_refused():
  env = PandaEnv(render_images=False)
  for use in (lambda: env.step(np.zeros(5)), env.observe, env.snapshot):
    with pytest.raises(Pi0RagError, match="call reset"):
      use()
  env.reset(seed=0)
  with pytest.raises(Pi0RagError, match="action has NaN"):
    env.step(np.array([0.0, np.nan, 0.0, 0.0, 1.0]))
  with pytest.raises(Pi0RagError, match=r"shape \(2, 4\), expected \[T >= 1, 5\]"):
    env.advance(np.zeros((2, 4)))
  assert env.ticks == 0


def test_unknown_names_list_the_valid_ones():
  with pytest.raises(Pi0RagError, match=r"unknown task 'pick_place'.*pick_and_place"):
    PandaEnv("pick_place")
  with pytest.raises(Pi0RagError, match=r"unknown condition 'normal'.*nominal"):
    PandaEnv(condition="normal")
  env = PandaEnv(render_images=False)
  with pytest.raises(Pi0RagError, match=r"unknown reset option 'layout'.*object_region"):
    env.reset(options={"layout": 1})
  with pytest.raises(Pi0RagError, match=r"unknown object region 'here'.*held_out"):
    env.reset(options={"object_region": "here"})
  with pytest.raises(Pi0RagError, match=r"unknown expert 'dance'.*pick_and_place"):
    get_expert("dance")
