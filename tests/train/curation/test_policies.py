"""Checkpoints, the seeds of their rollouts, and which trainings can be run."""

import pytest

from configs import curation_panda, mobile_vla_lstm
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


def test_every_checkpoint_runs_its_own_seeds(tmp_path, monkeypatch):
  asked = {}
  monkeypatch.setattr(policies, "policies", lambda *_: {"early": "a", "late": "b"})
  monkeypatch.setattr(policies.directory, "load", lambda place: place)
  monkeypatch.setattr(policies.rollouts, "record",
                      lambda policy, folder, seeds, config, progress: asked.update({folder.name: list(seeds)}))
  config = curation_panda.get_config().unlock()
  config.rollouts.episodes = 2
  policies.rollout(config, tmp_path)
  assert asked == {"early": [100_000, 100_001], "late": [101_000, 101_001]}


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
