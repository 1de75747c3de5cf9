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


def test_an_interval_lies_about_the_area_and_keeps_a_width():
  labels = np.repeat([0.0, 1.0], 50)
  none, all_, guess = (metrics.auroc_estimate(scores, labels) for scores in (-labels, labels, labels * 0))
  assert (all_.value, all_.high) == (1.0, 1.0) and all_.low == pytest.approx(0.960, abs=1e-3)
  assert (none.value, none.low) == (0.0, 0.0) and none.high == pytest.approx(1 - all_.low)
  # Hanley and McNeil's standard error of 0.5 with 50 of each is 0.058.
  assert (guess.low, guess.high) == (pytest.approx(0.39, abs=0.005), pytest.approx(0.61, abs=0.005)) and guess.n == 100
  assert metrics.auroc_estimate([*labels, 9.0], [*labels, np.nan]).n == 100


def test_the_interval_covers_the_true_area():
  rng, true = np.random.default_rng(0), 0.9
  shift = np.sqrt(2) * 1.2815516
  labels, found = np.repeat([0.0, 1.0], (40, 60)), []
  for _ in range(200):
    estimate = metrics.auroc_estimate(rng.normal(size=100) + shift * labels, labels)
    found.append(estimate.low <= true <= estimate.high)
  assert 0.9 <= np.mean(found) <= 0.99


def test_either_way_takes_the_better_direction():
  for values in (SCORES, -np.array(SCORES)):
    assert metrics.auroc(metrics.either_way(values, LABELS), LABELS) == pytest.approx(3.5 / 4)


@pytest.mark.parametrize(("labels", "both"), [([1, 0], True), ([1.0, np.nan], False), ([np.nan], False), ([], False),
                                              ([True, False], True), ([0, 0], False)])
def test_both_classes_are_there_or_not(labels, both):
  assert metrics.both_classes(labels) == both


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


def test_what_is_as_fast_is_compared_alone():
  # Scores that follow the pace tell nothing at equal pace; those that do not tell as much as ever.
  pace_J, clean_J = np.array([1, 2, 4, 1, 2, 8.0]), np.array([1, 1, 1, 0, 0, 0.0])
  assert metrics.auroc_at_equal(-pace_J, clean_J, pace_J) == (0.5, 2)
  assert metrics.auroc_at_equal(clean_J, clean_J, pace_J) == (1.0, 2)
  unknown_J = np.where(pace_J == 1, np.nan, clean_J)
  assert metrics.auroc_at_equal(clean_J, unknown_J, pace_J) == (1.0, 1)
  value, pairs = metrics.auroc_at_equal(pace_J, clean_J, 100.0 ** np.arange(6))
  assert np.isnan(value) and pairs == 0
