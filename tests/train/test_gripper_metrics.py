import jax
import jax.numpy as jnp
import numpy as np

from train import gripper_metrics


def test_scores_by_hand():
  logits_BWTG = np.array([2.0, 0.1, 3.0, -1.0, -2.0, -0.5, 9.0]).reshape(7, 1, 1, 1)
  labels_BWTG = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0]).reshape(7, 1, 1, 1)
  valid_BWT = np.array([True] * 6 + [False]).reshape(7, 1, 1)
  counts = gripper_metrics.count(logits_BWTG, labels_BWTG, valid_BWT)
  assert (counts.true_open, counts.false_open, counts.true_closed, counts.false_closed) == (2, 1, 2, 1)
  scores = gripper_metrics.scores(counts)
  np.testing.assert_allclose([scores[name] for name in ("accuracy", "precision", "recall", "f1")], 2 / 3)


def test_counts_add_up_and_means_give_the_same_scores():
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(4, 2, 3, 1)), rng.integers(0, 2, (4, 2, 3, 1))
  valid = rng.random((4, 2, 3)) < 0.7
  whole = gripper_metrics.count(logits, labels, valid)
  parts = [gripper_metrics.count(logits[i::2], labels[i::2], valid[i::2]) for i in range(2)]
  assert jax.tree.leaves(parts[0] + parts[1]) == jax.tree.leaves(whole)
  mean = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
  for name, value in gripper_metrics.scores(whole).items():
    np.testing.assert_allclose(gripper_metrics.scores(mean)[name], value, rtol=1e-6)


def test_nothing_to_count_scores_zero():
  counts = gripper_metrics.count(jnp.ones((1, 1, 1, 1)), jnp.ones((1, 1, 1, 1)), jnp.zeros((1, 1, 1), bool))
  assert list(gripper_metrics.scores(counts).values()) == [0.0] * 4
