"""Training, scores and thresholds on made-up rollouts whose successes lie on one side."""

import jax
import numpy as np
import pytest

from pi0rag_jax.curation import cross_validation, inputs, metrics, saved, scoring, thresholds, training
from pi0rag_jax.curation.inputs import Episodes, join
from pi0rag_jax.errors import Pi0RagError

CONFIG = training.TrainingConfig(epochs=30, batch_size=64, learning_rate=1e-2, seed=1)


def rollouts(seed: int, episodes: int = 24, shift: float = 2.0) -> Episodes:
  """Returns episodes of 5 to 9 steps: entry 1 of a success is higher, whatever its scale; entry 2 never changes."""
  rng = np.random.default_rng(seed)
  success_J = (np.arange(episodes) % 3 > 0).astype(float)
  values = []
  for i, success in enumerate(success_J):
    steps_TF = rng.normal(size=(5 + i % 5, 3)).astype(np.float32)
    steps_TF[:, 1] = 100 * (steps_TF[:, 1] + shift * success)
    steps_TF[:, 2] = 7.0
    values.append(steps_TF)
  return Episodes(tuple(values), success_J)


@pytest.fixture(scope="module")
def step_mlp():
  episodes = {"a": rollouts(0), "b": rollouts(1), "c": rollouts(2)}
  return cross_validation.cross_validate("step_mlp", {}, episodes, CONFIG)


def test_the_best_pair_tells_unseen_successes(step_mlp):
  trained, losses = step_mlp
  assert set(losses) == {"a -> c", "b -> c"} and min(losses.values()) == trained.validation_loss
  assert 1 <= trained.epoch <= CONFIG.epochs
  unseen = rollouts(9)
  assert metrics.auroc(scoring.episode_scores(trained, unseen), unseen.success_J) > 0.95


def test_the_loss_of_the_kept_epoch_is_the_recorded_one(step_mlp):
  trained, _ = step_mlp
  scores = np.concatenate(scoring.step_scores(trained, rollouts(2))).astype(float)
  success = rollouts(2).as_steps().success_J
  assert -np.log(np.where(success > 0.5, scores, 1 - scores)).mean() == pytest.approx(trained.validation_loss, rel=1e-4)


def test_whole_episodes_are_told_apart():
  trained = training.train("transformer", {"width": 8, "layers": 1}, rollouts(0), rollouts(1), CONFIG)
  scores = scoring.episode_scores(trained, rollouts(9))
  assert metrics.auroc(scores, rollouts(9).success_J) > 0.9


def test_scores_are_means_over_steps_without_dropout(step_mlp):
  trained, _ = step_mlp
  episodes = rollouts(3)
  steps = scoring.step_scores(trained, episodes)
  assert [len(s) for s in steps] == [len(v) for v in episodes.values]
  x = (episodes.values[0] - trained.mean_F) / trained.std_F
  dense = lambda x, layer: x @ layer["kernel"] + layer["bias"]  # noqa: E731
  for i in range(2):
    x = np.maximum(dense(x, trained.params["MlpTrunk_0"][f"Dense_{i}"]), 0)
  expected = 1 / (1 + np.exp(-dense(x, trained.params["Dense_0"])[:, 0]))
  np.testing.assert_allclose(steps[0], expected, atol=1e-5)
  assert scoring.episode_scores(trained, episodes)[0] == pytest.approx(expected.mean(), abs=1e-5)
  np.testing.assert_allclose(scoring.ensemble_scores([[0.0, 1.0], [1.0, 1.0]]), [0.5, 1.0])


def test_a_success_weighs_four_failures(step_mlp):
  trained, _ = step_mlp
  batch = training.batch_of(trained, rollouts(2))
  part = lambda chosen: jax.tree.map(lambda x: x[chosen], batch)  # noqa: E731
  loss = lambda batch, weight=1.0: float(jax.jit(training.cross_entropy, static_argnums=0)(  # noqa: E731
    trained.module, trained.params, batch, success_weight=weight))
  good = batch.success_B > 0.5
  mean = (4 * good.sum() * loss(part(good)) + (~good).sum() * loss(part(~good))) / (4 * good.sum() + (~good).sum())
  assert loss(batch, 4.0) == pytest.approx(mean, rel=1e-4)


def test_an_update_learns_of_new_rollouts_and_never_gets_worse(step_mlp):
  trained, _ = step_mlp
  turned = rollouts(5, shift=-2.0)
  updated = training.update(trained, turned, rollouts(6, shift=-2.0), CONFIG)
  assert metrics.auroc(scoring.episode_scores(updated, turned), turned.success_J) > 0.9
  np.testing.assert_array_equal(updated.mean_F, trained.mean_F)
  kept = training.update(trained, turned, rollouts(2), CONFIG)
  assert kept.epoch < 3 and kept.validation_loss <= trained.validation_loss + 1e-5


def test_checkpoints_of_one_class_are_left_out_of_the_default_pairs(caplog):
  good = rollouts(0)
  failed, perfect = (Episodes(good.values, np.full(len(good), value)) for value in (0.0, 1.0))
  pairs = cross_validation.default_pairs({"a": failed, "b": good, "c": good, "d": perfect})
  assert pairs == [("b", "c")]
  assert "left out: 0 of 24 rollouts of 'a'" in caplog.text and "left out: 24 of 24 rollouts of 'd'" in caplog.text
  with pytest.raises(Pi0RagError, match=r"there are such of b: give two or more. 0 of 24 rollouts of 'a' succeeded"):
    cross_validation.default_pairs({"a": failed, "b": good})
  unknown = Episodes(good.values, np.full(len(good), np.nan))
  with pytest.raises(Pi0RagError, match="24 of 24 rollouts of 'a' have no success label"):
    cross_validation.default_pairs({"a": unknown, "b": good, "c": good})


def test_the_weight_is_the_classifiers(step_mlp):
  even = training.train("step_mlp", {"success_weight": 1.0}, rollouts(0), rollouts(1), CONFIG)
  weighted = training.train("step_mlp", {}, rollouts(0), rollouts(1), CONFIG)
  mean = lambda trained: scoring.episode_scores(trained, rollouts(9)).mean()  # noqa: E731
  assert mean(even) < mean(weighted) - 0.05


def test_rollouts_are_cut_after_a_common_number_of_steps():
  lengths_J, success_J = np.array([9, 4, 6, 20, 20]), np.array([1.0, 1, 1, 0, np.nan])
  cut = lambda value, labels=success_J: inputs.common_frames(lengths_J, labels, value)  # noqa: E731
  assert (cut(-1), cut(0), cut(5), cut(-1, success_J * 0)) == (6, None, 5, None)
  with pytest.raises(Pi0RagError, match="rollouts are cut after -2 frames; allowed"):
    cut(-2)
  episodes = rollouts(0)
  assert {len(v) for v in episodes.cut(6).values} == {5, 6} and episodes.cut(None).values[4] is not None
  np.testing.assert_array_equal(episodes.cut(6).values[4], episodes.values[4][:6])


def test_a_classifier_comes_back_from_disk(step_mlp, tmp_path):
  trained, losses = step_mlp
  scores = thresholds.RolloutScores(*(np.array([0.0, 1.0]) for _ in range(4)))
  saved.SavedClassifier(trained, scores, "recipe", losses).save(tmp_path / "c")
  found = saved.load(tmp_path / "c")
  np.testing.assert_array_equal(scoring.episode_scores(found.trained, rollouts(3)),
                                scoring.episode_scores(trained, rollouts(3)))
  assert (found.recipe, found.trained.epoch, found.losses) == ("recipe", trained.epoch, losses)
  (tmp_path / "c" / saved.ARRAYS_NAME).write_bytes(b"")
  with pytest.raises(Pi0RagError, match=r"is damaged .*train it again"):
    saved.load(tmp_path / "c")


def test_what_cannot_be_trained_is_said_plainly(step_mlp):
  good = rollouts(0)
  one_class = Episodes(good.values, np.ones(len(good)))
  with pytest.raises(Pi0RagError, match=r"24 of 24 rollouts of 'b' succeeded: .* an earlier checkpoint or a harder"):
    cross_validation.cross_validate("step_mlp", {}, {"a": good, "b": one_class}, CONFIG, pairs=[("a", "b")])
  with pytest.raises(Pi0RagError, match="no rollouts of 'z'; there are those of a, b"):
    cross_validation.cross_validate("step_mlp", {}, {"a": good, "b": good}, CONFIG, pairs=[("a", "z")])
  unknown = Episodes(good.values, np.full(len(good), np.nan))
  with pytest.raises(Pi0RagError, match="24 of 48 rollouts of 'a' have no success label"):
    training.check_classes("a", join([good, unknown]))
  narrow = Episodes(tuple(v[:, :2] for v in good.values), good.success_J)
  with pytest.raises(Pi0RagError, match="inputs have width 2, the classifier 'step_mlp' was trained on 3"):
    scoring.episode_scores(step_mlp[0], narrow)


SCORES = thresholds.RolloutScores(np.array([0.2, 0.8]), np.array([0.0, 1.0]),
                                  np.array([0.1, 0.3, 0.5, 0.9]), np.array([0.0, 0.0, 1.0, 1.0]))


@pytest.mark.parametrize(("rule", "value", "border", "kept"), [
  ("fixed", None, 0.5, [False, True, True, True]),
  ("fixed", 0.7, 0.7, [False, False, True, False]),
  ("demo_score", None, 0.5, [False, True, True, True]),
  ("roc", None, 0.4, [True, True, True, True]),
  ("fraction", 0.5, 0.6, [False, True, True, False]),  # of equal scores the first
])
def test_thresholds_by_hand(rule, value, border, kept):
  scores_J = np.array([0.4, 0.6, 0.9, 0.6])
  found = thresholds.threshold(rule, value=value, scores_J=scores_J, rollouts=[SCORES])
  assert found == pytest.approx(border)
  assert thresholds.kept(rule, found, scores_J, value=value).tolist() == kept


def test_episodes_without_a_score_are_not_kept():
  scores_J = np.array([np.nan, 0.6, 0.7])
  assert thresholds.kept("fixed", 0.5, scores_J).tolist() == [False, True, True]
  assert thresholds.kept("fraction", 0.7, scores_J, value=0.5).tolist() == [False, False, True]
  with pytest.raises(Pi0RagError, match="keeps a share of None"):
    thresholds.threshold("fraction", value=None, scores_J=scores_J, rollouts=[])
  with pytest.raises(Pi0RagError, match=r"unknown rule for the threshold 'roq'. Did you mean 'roc'"):
    thresholds.threshold("roq", value=None, scores_J=scores_J, rollouts=[])
