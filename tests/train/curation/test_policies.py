"""Checkpoints, the seeds of their rollouts, and which trainings can be run."""

import pytest

from configs import curation_panda, mobile_vla_lstm
from pi0rag_jax.cluster import Machines
from pi0rag_jax.curation import rollouts
from pi0rag_jax.errors import Pi0RagError
from train.curation import policies, retrain


@pytest.mark.parametrize(("steps", "every", "count", "found"), [
  (14_000, 500, 4, [3500, 7000, 10_500, 14_000]), (1000, 300, 2, [600, 1000]), (4, 2, 2, [2, 4])])
def test_checkpoints_are_evenly_spaced_validations(steps, every, count, found):
  config = curation_panda.get_config().unlock()
  config.training.steps, config.training.validate_every, config.checkpoints = steps, every, count
  assert policies.checkpoint_steps(config) == found
  config.checkpoints = 100
  with pytest.raises(Pi0RagError, match="can keep 2 to "):
    policies.checkpoint_steps(config)


def test_no_two_checkpoints_see_the_same_layout():
  config = curation_panda.get_config().unlock()
  seeds = [set(policies.rollout_seeds(config, number)) for number in range(4)]
  config.rollouts.episodes = 300
  more = [set(policies.rollout_seeds(config, number)) for number in range(4)]
  for i in range(4):
    assert len(seeds[i]) == 100 and seeds[i] < more[i]
    assert not any(more[i] & other for other in (more + seeds)[i + 1 : i + 4])
  assert not any(more[i] & seeds[j] for i in range(4) for j in range(4) if i != j)


@pytest.fixture
def two_checkpoints(tmp_path, monkeypatch):
  """Rollouts that are made at once: (configuration, what was asked for of each checkpoint, its folder)."""
  asked = {}

  def written(policy, folder, seeds, config, *, first_seed):
    asked.setdefault(folder.name, []).append((policy, list(seeds), first_seed))
    for seed in seeds:
      if seed != 101_001:
        folder.mkdir(parents=True, exist_ok=True)
        rollouts.episode_path(folder, seed).touch()
      yield seed, "it broke" if seed == 101_001 else ""

  monkeypatch.setattr(policies, "policies", lambda *_: {"early": "a", "late": "b"})
  monkeypatch.setattr(policies.directory, "load", lambda place: f"policy {place}")
  monkeypatch.setattr(policies.rollouts, "written", written)
  config = curation_panda.get_config().unlock()
  config.rollouts.episodes = 2
  return config, asked, tmp_path


def test_every_checkpoint_runs_its_own_seeds_and_those_that_are_missing(two_checkpoints, caplog):
  config, asked, folder = two_checkpoints
  policies.rollout(config, folder)
  assert asked == {"early": [("policy a", [100_000, 100_001], 100_000)],
                   "late": [("policy b", [101_000, 101_001], 101_000)]}
  assert "checkpoint late: 1 rollouts crashed and are left out: seeds [101001]" in caplog.text
  asked.clear()
  policies.rollout(config, folder)
  assert asked == {"late": [("policy b", [101_001], 101_000)]}


def test_on_a_cluster_rollouts_run_in_groups(two_checkpoints, made_up_ray):
  config, asked, folder = two_checkpoints
  config.rollouts.episodes, config.rollouts.slots = 5, 1
  made_up_ray(one=1, two=2)
  policies.rollout(config, folder, Machines("local"))
  groups = {name: sorted(seeds for _, seeds, _ in given) for name, given in asked.items()}
  assert groups == {name: [[first, first + 1], [first + 2, first + 3], [first + 4]]
                    for name, first in (("early", 100_000), ("late", 101_000))}
  assert {first for given in asked.values() for *_, first in given} == {100_000, 101_000}


def test_rollouts_that_all_crash_are_an_error(two_checkpoints):
  config, _, folder = two_checkpoints
  config.rollouts.episodes = 1
  config.rollouts.first_seed = 100_001
  with pytest.raises(Pi0RagError, match=r"(?s)all 1 rollouts into '.*late' crashed, the last with:.it broke"):
    policies.rollout(config, folder)


@pytest.mark.parametrize(("changes", "message"), [
  ({"episodes": 1001}, "rollouts.episodes is 1001; allowed: 1 to 1000 of each checkpoint"),
  ({"episodes": 0}, "rollouts.episodes is 0"),
  ({"first_seed": 199_950}, "checkpoint 0 would have the seeds 199950 to 200049; allowed: 100000 to 199999"),
  ({"first_seed": 0}, "the seeds 0 to 99; allowed: 100000 to 199999"),
])
def test_rollouts_stay_within_the_seeds_of_streams(changes, message):
  config = curation_panda.get_config().unlock()
  config.rollouts.update(changes)
  with pytest.raises(Pi0RagError, match=message):
    policies.rollout_seeds(config, 0)


def test_only_policies_that_run_here_are_trained(tmp_path):
  config = curation_panda.get_config().unlock()
  config.training = mobile_vla_lstm.get_config("debug")
  for stage in (policies.train, retrain.retrain):
    with pytest.raises(Pi0RagError, match=r"not of the robot 'panda'; the stages train and retrain need it.*rollouts"):
      stage(config, tmp_path)
