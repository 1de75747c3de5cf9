"""What a selection is worth: each has runs of its own, logs hold what fits, and comparisons are of shared seeds."""

import dataclasses

import numpy as np
import pytest

from configs import curation_panda
from pi0rag_jax.curation import rollouts, selection
from pi0rag_jax.curation.selection import Selection
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
  outcomes = {"all": {1: "success", 2: "failure", 3: "failure", 4: "success"},
              "random": {1: "success", 2: "failure", 3: "crashed", 4: "failure"},
              "kept": {1: "success", 2: "success", 3: "success", 4: "success"}}
  found = retrain.compare(outcomes)
  assert (found["seeds"], found["crashed"]) == (3, 1)
  assert {name: each["rate"] for name, each in found["success"].items()} == pytest.approx(
    {"all": 2 / 3, "random": 1 / 3, "kept": 1.0})
  assert (found["kept against all"]["fixed"], found["kept against random"]["fixed"]) == (1, 2)
