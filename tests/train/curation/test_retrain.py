"""What a selection is worth: each has runs of its own, logs hold what fits, and comparisons are of shared seeds."""

import dataclasses

import numpy as np
import pytest

from configs import curation_panda
from pi0rag_jax.curation import rollouts, selection
from pi0rag_jax.curation.selection import Selection
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds.episode import Job, Trace
from train.curation import retrain, summary

SCORES = np.array([0.9, np.nan, 0.1, 0.8, 0.2, 0.7])


def make_selection(*kept: int) -> Selection:
  return Selection("data", SCORES, np.isin(np.arange(6), kept), 0.5, "fixed")


@pytest.fixture
def runs(monkeypatch):
  """Trainings and exports without either: (selection, folder) of each training, the checkpoint of each export."""
  found = {"trained": [], "exported": []}

  def train(training, workdir):
    found["trained"].append((training.data[0].get("selection"), workdir))
    for step in (training.steps - training.validate_every, training.steps):
      (workdir / "checkpoints" / str(step)).mkdir(parents=True)

  def export(checkpoint, policy, target):
    found["exported"].append(checkpoint)
    target.mkdir()

  monkeypatch.setattr(retrain.loop, "train_and_evaluate", train)
  monkeypatch.setattr(retrain, "export_checkpoint", export)
  monkeypatch.setattr(retrain, "evaluate", lambda *_: {1: "success", 2: "failure"})
  return found


def test_another_selection_is_another_run(tmp_path, runs):
  config = curation_panda.get_config()
  for kept in ((0, 3), (0, 3), (0, 5)):
    selection.write_json(tmp_path / "selection.json", [make_selection(*kept)])
    retrain.retrain(config, tmp_path)
  kept, other = (run for run in runs["trained"] if "kept-" in run[1].name)
  assert kept[1] != other[1] and "selection" not in config.training.data[0]
  assert selection.read_json(kept[0])[0].kept_J.nonzero()[0].tolist() == [0, 3]
  assert selection.read_json(other[0])[0].kept_J.nonzero()[0].tolist() == [0, 5]
  assert [run for run in runs["trained"] if run[1].name == "train"] == [(None, tmp_path / "train")]
  assert summary.read_evaluation(tmp_path, [make_selection(0, 5)])["seeds"] == 2
  assert summary.read_evaluation(tmp_path, [make_selection(0, 3)]) is None


def test_policies_are_compared_after_as_many_steps(tmp_path, runs):
  selection.write_json(tmp_path / "selection.json", [make_selection(0, 3)])
  config = curation_panda.get_config()
  retrain.retrain(config, tmp_path)
  assert [checkpoint.name for checkpoint in runs["exported"]] == [str(config.training.steps)] * 3


def test_a_random_selection_is_as_large_and_of_scored_episodes():
  for seed in range(20):
    (drawn,) = retrain.random_like([make_selection(0, 2, 3, 5)], seed)
    assert drawn.kept_J.sum() == 4 and not drawn.kept_J[1] and drawn.path == "data"


def test_outcomes_of_another_place_are_not_taken(tmp_path, monkeypatch):
  asked = []

  @dataclasses.dataclass
  class Policy:
    fingerprint: str = "p"

  def run(policy, seeds, place):
    asked.append((place.condition, place.stochastic, list(seeds)))
    for seed in seeds:
      yield Trace(Job(seed, 0), outcome="success")

  monkeypatch.setattr(rollouts, "run", run)
  monkeypatch.setattr(retrain, "load", lambda _: Policy())
  config = curation_panda.get_config().unlock()
  config.retrain.episodes = 2
  evaluate = lambda: retrain.evaluate(config, tmp_path, tmp_path / "kept.jsonl")  # noqa: E731
  assert evaluate() == evaluate() == {200_000: "success", 200_001: "success"}
  config.retrain.stochastic = True
  evaluate()
  config.rollouts.condition = "camera_shift"
  evaluate()
  seeds = [200_000, 200_001]
  assert asked == [("nominal", False, seeds), ("nominal", True, seeds), ("camera_shift", True, seeds)]


def test_the_comparison_counts_shared_seeds_alone():
  outcomes = {"all": {0: {1: "success", 2: "failure", 3: "failure", 4: "success"}},
              "random": {0: {1: "success", 2: "failure", 3: "crashed", 4: "failure"}},
              "kept": {0: {1: "success", 2: "success", 3: "success", 4: "success"}}}
  found = retrain.compare(outcomes)
  assert (found["seeds"], found["crashed"]) == (3, 1)
  assert {name: each["rate"] for name, each in found["success"].items()} == pytest.approx(
    {"all": 2 / 3, "random": 1 / 3, "kept": 1.0})
  assert (found["kept against all"]["fixed"], found["kept against random"]["fixed"]) == (1, 2)


def test_several_trainings_of_a_selection_count_together():
  """The second training of what was kept is not done yet: its rate is there, and no comparison."""
  outcomes = {"random": {0: {1: "success", 2: "failure"}, 1: {1: "failure", 2: "failure"}},
              "deminf": {0: {1: "success", 2: "success"}, 1: {1: "success", 2: "failure"}},
              "kept": {0: {1: "success", 2: "success"}}}
  found = retrain.compare(outcomes)
  assert found["training_seeds"] == [0, 1] and found["success"]["deminf"]["n"] == 4
  assert found["success"]["deminf"]["by_training_seed"] == {"0": 1.0, "1": 0.5}
  assert found["success"]["kept"]["rate"] == 1.0 and "kept against random" not in found
  assert found["deminf against random"]["fixed"] == 2 and found["deminf against random"]["n"] == 4


def test_selections_by_a_scorer_and_of_what_is_clean(tmp_path, monkeypatch):
  """As many as are kept: those that a scorer likes best or least, and clean ones first."""
  config, kept = curation_panda.get_config(), [make_selection(0, 3)]
  scored = {"lengths": [1] * 6, "scores": {"deminf": [0.1, None, 0.9, 0.2, 0.8, 0.3]}}
  monkeypatch.setattr(retrain, "read_scores", lambda _: {"demonstrations": {"data": scored}})
  flaws = ["detour", "clean", "clean", "detour", "clean", "detour"]
  source = dataclasses.make_dataclass("Source", ["source"])(flaws)
  monkeypatch.setattr(retrain.data, "demonstrations", lambda *_: {"data": source})
  monkeypatch.setattr(retrain.verdicts, "flaws_of", lambda source: source)
  chosen = lambda name: np.flatnonzero(retrain.chosen_by(config, tmp_path, name, kept)[0].kept_J).tolist()  # noqa: E731
  assert chosen("deminf") == [2, 4] and chosen("least deminf") == [0, 3] and chosen("kept") == [0, 3]
  assert chosen("oracle") == [2, 4]  # the second has no score
  with pytest.raises(Pi0RagError, match=r"unknown entry of retrain.compared 'demnif'. Did you mean 'deminf'"):
    chosen("demnif")


def test_another_seed_is_another_training(tmp_path, runs):
  config = curation_panda.get_config().unlock()
  config.retrain.training_seeds, config.retrain.compared = (0, 1), ("all", "kept")
  selection.write_json(tmp_path / "selection.json", [make_selection(0, 3)])
  retrain.retrain(config, tmp_path)
  names = [workdir.name.rpartition("-")[0] or workdir.name for _, workdir in runs["trained"]]
  assert names == ["train", "kept", "all", "kept-seed1"]
