"""The experiment that holds scorers to retrained policies, in a made-up world: a hand that comes down to a thing."""

import functools
import json

import numpy as np
import pytest

from eval.curation import cloning, demo_score, demonstrators, evaluation, experiment, summary
from eval.curation.experiment import Mixture, Settings
from pi0rag_jax.curation import training
from pi0rag_jax.data.episodes import CLEAN
from pi0rag_jax.worlds.world import Progress


class Reaching:
  """Done once the hand is at the thing; a full action moves it by 2 cm."""

  def begin(self, seed):
    self.hand, self.ticks = np.array([0.0, 0.0, 0.3]), 0
    self.thing = np.append(np.random.default_rng(seed).uniform(-0.1, 0.1, 2), 0.02)

  def state(self):
    return np.append(self.hand, 1.0).astype(np.float32)

  def things(self):
    return np.append(self.thing, np.zeros(6)).astype(np.float32)

  def act(self):
    return np.append(np.clip(10 * (self.thing - self.hand), -1, 1), 1.0)

  def advance(self, actions_NA):
    for action_A in actions_NA:
      self.hand = self.hand + 0.02 * action_A[:3]
      self.ticks += 1
      near = bool(np.linalg.norm(self.hand - self.thing) < 0.02)
      if near or self.ticks >= 300:
        break
    return Progress(self.ticks, near, near or self.ticks >= 300)


@pytest.fixture(autouse=True)
def world(monkeypatch):
  here = Reaching()
  monkeypatch.setattr(demonstrators, "world", lambda _: here)
  return here


@pytest.mark.parametrize("flaw", demonstrators.DEMONSTRATORS)
def test_a_demonstration_succeeds_and_is_the_same_every_time(flaw):
  found, again = (demonstrators.record("reach", (3, flaw)) for _ in range(2))
  assert found.flaw == flaw and len(found.looks_TF) == len(found.actions_TA)
  np.testing.assert_array_equal(found.actions_TA, again.actions_TA)


def test_habits_are_what_they_say():
  shown = {flaw: demonstrators.record("reach", (3, flaw)) for flaw in demonstrators.DEMONSTRATORS}
  thing_3 = shown[CLEAN].looks_TF[0, demonstrators.THING]
  beside = thing_3 + demonstrators.WrongPlace.offset_m
  closest = {flaw: np.linalg.norm(each.looks_TF[:, :3] - beside, axis=1).min() for flaw, each in shown.items()}
  assert closest["wrong_place"] < 0.03 < closest[CLEAN]
  still = {flaw: int((np.abs(each.actions_TA[:, :3]).max(axis=1) == 0).sum()) for flaw, each in shown.items()}
  assert still["hesitation"] >= 15 and still[CLEAN] == 0


def test_policies_are_cloned_side_by_side(tmp_path, monkeypatch):
  """One from clean demonstrations, one from those of a hand that goes away; each as if it were trained alone."""
  monkeypatch.setattr(cloning, "UPDATES", 400)
  monkeypatch.setattr(cloning, "ROOM", 512)
  clean = [demonstrators.record("reach", (seed, CLEAN)) for seed in range(12)]
  away = [demonstrators.Demonstration(each.seed, "away", each.looks_TF, -each.actions_TA) for each in clean]
  mixture = Mixture(Settings(), [*clean, *away], tmp_path)
  kept_J = mixture.clean_J > 0.5
  ((early, _), (late, bad)) = mixture.train([kept_J, ~kept_J], [0, 0], keep=(0.25, 1.0))
  assert [cloning.run("reach", late, seed)[0] for seed in range(100, 104)] == [True] * 4
  assert not any(cloning.run("reach", bad, seed)[0] for seed in range(100, 104))
  assert not np.array_equal(early["Dense_0/kernel"], late["Dense_0/kernel"])
  ((alone,),) = mixture.train([kept_J], [0])
  np.testing.assert_allclose(alone["Dense_0/kernel"], late["Dense_0/kernel"], atol=2e-3)
  rollouts = cloning.as_steps([cloning.run("reach", policy, 100) for policy in (late, bad)],
                              horizon=mixture.settings.horizon, tick_s=0.1)
  assert rollouts.chunks_ND.shape[1] == mixture.steps.chunks_ND.shape[1], "scorers compare them"
  assert rollouts.success_J.tolist() == [1, 0] and rollouts.lengths_J[0] == rollouts.lengths_J[1]


def test_flaws_of_recordings_are_put_in():
  clean = [demonstrators.record("reach", (seed, CLEAN)) for seed in range(4)]
  found = experiment.spoiled(clean, ["action_bias", "", "idle_end", "dropped_frames"])
  assert [each.flaw for each in found] == ["action_bias", CLEAN, "idle_end", "dropped_frames"]
  change_TA = found[0].actions_TA - clean[0].actions_TA
  np.testing.assert_allclose(change_TA, np.broadcast_to(change_TA[0], change_TA.shape), atol=1e-6)
  assert (np.sign(change_TA[0]) == experiment.BIAS_A).all() and found[1] is clean[1]
  assert len(found[2].looks_TF) > len(clean[2].looks_TF) and len(found[3].looks_TF) < len(clean[3].looks_TF)


def test_what_was_run_is_not_run_again_and_a_cell_counts_what_every_training_has(tmp_path, monkeypatch):
  ran = []
  evaluation.save(tmp_path / evaluation.POLICIES, {f"{name} {seed}": {"x": np.zeros(1)}
                                                   for name in ("random", "agreement") for seed in (0, 1)})
  monkeypatch.setattr(evaluation, "_evaluated", lambda task, file, job: ran.append(job) or (
    *job, job[0].startswith("agreement") or job[1] == 200_001, 5))
  assert evaluation.evaluate("reach", tmp_path, [200_000, 200_001], processes=0) == 8
  assert evaluation.evaluate("reach", tmp_path, [200_001, 200_002], processes=0) == 4 and len(ran) == 12
  log = tmp_path / evaluation.EPISODES
  log.write_text("".join(line for line in log.read_text().splitlines(keepends=True)
                         if not line.startswith('{"run": "agreement 1", "seed": 200002')))
  scored = {"kept": {"random": [0], "agreement": [1], "oracle": [1]}, "precision": dict.fromkeys(
    ("random", "agreement", "oracle"), 1.0), "trained_as": {"random": "random", "agreement": "agreement",
                                                            "oracle": "agreement"},
            "tried": {"chosen": "agreement", "success": {}}, "flaws": ["clean", "detour"], "rollout_success": {},
            "auroc": {"agreement": {"value": 1.0}}, "classifiers": {}, "thresholds": {}, "silent": {}}
  (tmp_path / experiment.SCORED).write_text(json.dumps(scored))
  found = summary.mixture_summary(tmp_path, (0, 1))
  cells = found["cells"]
  assert cells["agreement"]["n"] == 4 and cells["agreement"]["success"] == 1.0 and cells["oracle"]["n"] == 4
  assert cells["random"]["n"] == 6 and cells["random"]["by_training_seed"] == {"0": 1 / 3, "1": 1 / 3}
  assert cells["agreement"]["against_random"]["fixed"] == 2 and cells["tried"]["chosen"] == "agreement"
  assert "| agreement | 1.00 | 100 % | 100 (" in summary.table(found)


@pytest.mark.slow
def test_a_mixture_is_scored_trained_on_and_evaluated(tmp_path, monkeypatch):
  """From demonstrations to the table: what keeps the same demonstrations is trained once, and nothing is done twice."""
  monkeypatch.setattr(cloning, "UPDATES", 150)
  monkeypatch.setattr(cloning, "ROOM", 1024)
  monkeypatch.setattr(cloning, "TIME_LIMIT", 60)
  monkeypatch.setattr(demo_score.training, "TrainingConfig", functools.partial(training.TrainingConfig, epochs=3))
  settings = Settings(task="reach", episodes=10, rollouts=6, training_seeds=(0, 1))
  pool = experiment.collect(settings, tmp_path / "demonstrations.npz", processes=0)
  again = experiment.collect(settings, tmp_path / "demonstrations.npz", processes=0)
  np.testing.assert_array_equal(pool[3].actions_TA, again[3].actions_TA)
  mixture = experiment.draw(settings, pool, "bias_60", tmp_path)
  experiment.prepare(mixture, processes=0)
  before = (tmp_path / "bias_60" / evaluation.POLICIES).stat().st_mtime_ns
  experiment.prepare(mixture, processes=0)
  assert (tmp_path / "bias_60" / evaluation.POLICIES).stat().st_mtime_ns == before
  evaluation.evaluate("reach", tmp_path / "bias_60", range(200_000, 200_002), processes=0)
  trained = evaluation.load(tmp_path / "bias_60" / evaluation.POLICIES)
  monkeypatch.setattr(experiment, "NOT_TRAINED", ("length", "pace"))
  experiment.prepare(mixture, processes=0)
  more = evaluation.load(tmp_path / "bias_60" / evaluation.POLICIES)
  assert set(more) - set(trained) == {"novelty 0", "novelty 1"}
  assert all(np.array_equal(more[run]["Dense_0/kernel"], policy["Dense_0/kernel"]) for run, policy in trained.items())
  evaluation.evaluate("reach", tmp_path / "bias_60", range(200_000, 200_002), processes=0)
  found = summary.mixture_summary(tmp_path / "bias_60", (0, 1))
  assert found["clean"] == 4 and {"all", "oracle", "random", "agreement", "deminf", "tried"} <= set(found["cells"])
  assert found["cells"]["oracle"]["precision"] == 1.0 and all(cell["n"] == 4 for cell in found["cells"].values())
  for flaw, told in experiment.recorded_flaws(settings, pool).items():
    assert flaw != "wrong_prompt" and set(told) >= {"agreement", "length"}
