"""What every registered task keeps; `tests/sim/test_env.py` has what every environment keeps."""

import functools
import pickle

import numpy as np
import pytest

from configs import panda_tasks
from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.experts import EXPERTS, get_expert
from pi0rag_jax.sim.tasks import TASKS, get_task, task_names
from pi0rag_jax.sim.tasks.table import in_region

EVERY_TASK = pytest.mark.parametrize("task", task_names())
SEEDS = (390_001, 390_002)


@functools.cache
def _blind(task: str) -> PandaEnv:
  return PandaEnv(task, render_images=False)


@functools.cache
def _episode(task: str, seed: int):
  """Returns (success, observations, privileged states) of the expert's episode at its decisions, without pictures."""
  env, expert = _blind(task), get_expert(task)
  observation, info = env.reset(seed=seed)
  observations, privileged, done = [observation], [info["privileged"]], False
  while not done:
    _, terminated, truncated, info = env.advance(expert.plan(env, 4))
    done = terminated or truncated
    observations.append(env.observe())
    privileged.append(info["privileged"])
  return info["success"], observations, privileged


def test_every_task_has_its_name_and_an_expert():
  assert {name: cls.name for name, cls in TASKS.items()} == {name: name for name in task_names()}
  assert set(EXPERTS) == set(task_names())


@EVERY_TASK
def test_the_expert_solves_it_in_good_time_and_all_observations_are_in_their_space(task):
  for seed in SEEDS:
    success, observations, _ = _episode(task, seed)
    assert success and 4 * len(observations) < 0.75 * get_task(task).time_limit
    for observation in observations:
      assert observation in _blind(task).observation_space
      assert np.isfinite(observation["state"]).all()


@EVERY_TASK
def test_no_entry_of_the_observation_is_constant(task):
  states = np.concatenate([[o["state"] for o in _episode(task, seed)[1]] for seed in SEEDS])
  assert np.ptp(states, axis=0).min() > 1e-4
  env = PandaEnv(task, image_size=32)
  first, _ = env.reset(seed=SEEDS[0])
  env.advance(get_expert(task).plan(env, 24))
  for name, picture in env.observe()["image"].items():
    assert (picture != first["image"][name]).mean() > 0.01 and picture.std() > 10


@EVERY_TASK
def test_a_seed_decides_layout_pictures_and_trajectory(task):
  def played(env):
    first, _ = env.reset(seed=SEEDS[0])
    outcome = env.advance(get_expert(task).plan(env, 16))
    return pickle.dumps((env.layout, first, outcome, env.observe(), env.physics.snapshot()))

  env = PandaEnv(task, image_size=16)
  assert played(env) == played(env) == played(PandaEnv(task, image_size=16))


@EVERY_TASK
def test_seeds_start_differently(task):
  _, (first, *_), (there, *_) = _episode(task, SEEDS[0])
  _, (second, *_), (here, *_) = _episode(task, SEEDS[1])
  assert np.abs(first["state"][:3] - second["state"][:3]).min() > 1e-4
  for name in ("target_position", "goal_position"):
    assert np.abs(there[name][:2] - here[name][:2]).min() > 1e-4


@EVERY_TASK
def test_the_privileged_state_is_whole(task):
  for seed in SEEDS:
    _, _, states = _episode(task, seed)
    for state in states:
      assert set(state) == {"target_position", "target_yaw", "goal_position", "grasped"}
      assert np.shape(state["target_position"]) == (3,) and np.shape(state["goal_position"]) == (2,)
      numbers = [*state["target_position"], state["target_yaw"], *state["goal_position"]]
      assert np.isfinite(numbers).all()
    assert not states[0]["grasped"] and any(state["grasped"] for state in states)


@EVERY_TASK
def test_prompts_differ_and_fit_into_the_policy(task):
  rng = np.random.default_rng(0)
  prompts = [get_task(task).sample(rng, "full").prompt for _ in range(120)]
  words = [set(" ".join(part).split()) for part in (prompts[:60], prompts[60:])]
  assert words[0] == words[1]
  assert len(set(prompts)) > 1
  # The tokenizer puts a token before the words and one after them.
  assert max(len(prompt.split()) for prompt in prompts) <= panda_tasks.get_config().model.max_token_len - 2


@EVERY_TASK
@pytest.mark.parametrize("region", ["held_out", "seen"])
def test_the_target_starts_in_its_region(task, region):
  env, config = _blind(task), get_task(task).config
  for seed in range(8):
    _, info = env.reset(seed=seed, options={"object_region": region})
    assert in_region(info["privileged"]["target_position"][:2], region, config)
