"""Scores against labels: values worked out by hand."""

import numpy as np
import pytest

from pi0rag_jax.curation import metrics
from pi0rag_jax.errors import Pi0RagError

SCORES, LABELS = [0.9, 0.6, 0.6, 0.1], [1, 0, 1, 0]


def test_auroc_counts_pairs_and_ties_half():
  # Pairs (success, failure): .9 > .6, .9 > .1, .6 = .6, .6 > .1.
  assert metrics.auroc(SCORES, LABELS) == pytest.approx(3.5 / 4)
  assert metrics.auroc(-np.array(SCORES), LABELS) == pytest.approx(0.5 / 4)
  assert metrics.auroc([*SCORES, 0.0], [*LABELS, np.nan]) == pytest.approx(3.5 / 4)


def test_the_area_under_the_curve_is_the_auroc():
  rng = np.random.default_rng(0)
  labels = rng.random(200) < 0.4
  scores = np.round(rng.random(200) + 0.3 * labels, 1)
  curve = metrics.roc_curve(scores, labels)
  assert (curve.false_positive_K[0], curve.true_positive_K[-1], curve.false_positive_K[-1]) == (0, 1, 1)
  area = np.trapezoid(curve.true_positive_K, curve.false_positive_K)
  assert area == pytest.approx(metrics.auroc(scores, labels))


def test_calibration_by_hand():
  bins = metrics.calibration([0.1, 0.2, 0.8, 1.0], [0, 1, 1, 1], bins=2)
  assert [(b.n, b.rate) for b in bins] == [(2, 0.5), (2, 1.0)]
  assert [b.score for b in bins] == pytest.approx([0.15, 0.9])
  assert metrics.calibration_error(bins) == pytest.approx((0.35 + 0.1) / 2)
  assert np.isnan(metrics.calibration([0.9, 0.8], [0, 1], bins=2)[0].rate)


@pytest.mark.parametrize(("scores", "labels", "message"), [
  ([1.0, 2.0], [1, 1], "2 of 2 episodes are positive"),
  ([1.0, 2.0], [0, np.nan], "0 of 1 episodes are positive"),
  ([np.nan, 2.0], [0, 1], "1 of 2 scores are not finite"),
  ([1.0], [0, 1], "one of each per episode"),
])
def test_what_cannot_be_told_is_refused(scores, labels, message):
  with pytest.raises(Pi0RagError, match=message):
    metrics.auroc(scores, labels)
