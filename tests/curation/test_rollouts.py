"""Rollouts become a data set: whole, resumable, of one policy."""

import dataclasses

import numpy as np
import pytest

from pi0rag_jax.curation import rollouts
from pi0rag_jax.curation.rollouts import RolloutConfig
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy import directory
from pi0rag_jax.sim.tasks.pick_and_place import PickAndPlace, PickAndPlaceConfig

CONFIG = RolloutConfig(PickAndPlace(PickAndPlaceConfig(time_limit=8)), slots=2, processes=0)


@pytest.fixture(scope="module")
def policy(tiny_policy_dir):
  return directory.load(tiny_policy_dir)


@pytest.fixture(scope="module")
def folder(policy, tmp_path_factory):
  folder = tmp_path_factory.mktemp("rollouts")
  assert list(rollouts.written(policy, folder, [7], CONFIG, first_seed=7)) == [(7, "")]
  return folder


def test_every_decision_is_a_frame_of_what_the_policy_saw(folder, policy):
  data = open_dataset(folder).read_episode(0)
  assert len(data) == 2 and data.metadata["seed"] == 7 and data.metadata["success"] == 0
  assert {name: frames.shape for name, frames in data.images.items()} == {
    name: (2, 64, 64, 3) for name in policy.spec.cameras}
  trace = next(rollouts.run(policy, [7], CONFIG, keep_observations=True))
  np.testing.assert_allclose(data.actions[1], trace.steps[1].actions_TA[0], atol=1e-6)
  assert trace.steps[1].observation is not None
  np.testing.assert_array_equal(data.state[1], trace.steps[1].observation["state"])
  assert set(data.prompts) == {trace.prompt}
  assert open_dataset(folder).fps == 20 / policy.spec.execute_steps
  with pytest.raises(Pi0RagError, match="kept 0 observations of 2 decisions"):
    rollouts.as_episode(next(rollouts.run(policy, [7], CONFIG)), policy, CONFIG)


def test_what_is_there_is_not_run_again(folder):
  assert rollouts.missing(folder, [7, 8]) == [8]


def test_rollouts_of_something_else_are_refused(folder, policy):
  with pytest.raises(Pi0RagError, match=r"holds other rollouts: stochastic True, wanted False. Remove it"):
    next(rollouts.written(policy, folder, [7], dataclasses.replace(CONFIG, stochastic=False), first_seed=7))
  with pytest.raises(Pi0RagError, match=r"holds other rollouts: first_seed 7, wanted 8"):
    next(rollouts.written(policy, folder, [8], CONFIG, first_seed=8))


def test_episodes_that_crash_are_no_failures(policy, tmp_path, monkeypatch):
  def crash(*_, **__):
    trace = rollouts.Trace(rollouts.Job(3, 0))
    trace.outcome, trace.error = "crashed", "Traceback: broken"
    yield trace

  monkeypatch.setattr(rollouts, "run", crash)
  assert list(rollouts.written(policy, tmp_path, [3], CONFIG, first_seed=3)) == [(3, "Traceback: broken")]
  assert rollouts.missing(tmp_path, [3]) == [3]
