"""Rates and paired comparisons against values worked by hand or published."""

import math

import numpy as np
import pytest

from pi0rag_jax.statistics import (
  failures_removed,
  learning_curve,
  mcnemar_p_value,
  paired_comparison,
  paired_difference,
  percentiles,
  pooled_percentiles,
  success_rate,
  verdict,
  wilson,
)


def rng():
  return np.random.default_rng(0)


def test_wilson_by_hand():
  # z = 1.96, n = 10, p = 0.8: centre (p + z²/2n) / (1 + z²/n) = 0.7167, half width 0.2266.
  rate = success_rate([True] * 8 + [False] * 2)
  assert rate.value == 0.8 and rate.n == 10
  assert (rate.low, rate.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_wilson_at_the_edges():
  assert (wilson(0, 10).low, wilson(10, 10).high) == (0.0, 1.0)
  assert wilson(0, 10).high == pytest.approx(0.2775, abs=1e-4)
  empty = success_rate([])
  assert math.isnan(empty.value) and (empty.low, empty.high, empty.n) == (0.0, 1.0, 0)


def test_mcnemar_by_hand():
  # 8 fixed, 1 broken: 2 * (C(9,0) + C(9,1)) / 2^9 = 20 / 512.
  assert mcnemar_p_value(8, 1) == pytest.approx(20 / 512)
  assert mcnemar_p_value(1, 8) == mcnemar_p_value(8, 1)
  assert mcnemar_p_value(0, 0) == 1.0


def test_paired_counts_and_points():
  baseline = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1], bool)
  treatment = np.array([1, 1, 1, 0, 0, 1, 1, 1, 1, 1], bool)
  pair = paired_comparison(baseline, treatment, rng())
  assert (pair.n, pair.fixed, pair.regressed, pair.both_succeeded, pair.both_failed) == (10, 3, 1, 5, 1)
  assert pair.failures_removed.value == pytest.approx((3 - 1) / 4)
  assert pair.regressions.value == pytest.approx(1 / 6)
  assert pair.difference.value == pytest.approx(0.2)
  assert pair.p_value == pytest.approx(10 / 16)


def test_paired_arrays_of_different_length_are_refused():
  with pytest.raises(ValueError, match="2 and 3 seeds"):
    paired_comparison([True] * 2, [True] * 3, rng())


def test_newcombe_published_interval():
  # Newcombe 1998, table II, method 10: 36, 12, 2, 0 gives 0.0569 to 0.3404.
  estimate = paired_difference(fixed=12, regressed=2, both_succeeded=36, both_failed=0)
  assert estimate.value == pytest.approx(0.2)
  assert (estimate.low, estimate.high) == pytest.approx((0.0569, 0.3404), abs=1e-4)


def test_difference_changes_sign_with_the_sides():
  one = paired_difference(fixed=9, regressed=2, both_succeeded=20, both_failed=4)
  other = paired_difference(fixed=2, regressed=9, both_succeeded=20, both_failed=4)
  assert (other.low, other.high) == pytest.approx((-one.high, -one.low))


def test_difference_without_seeds():
  estimate = paired_difference(0, 0, 0, 0)
  assert math.isnan(estimate.value) and (estimate.low, estimate.high) == (-1.0, 1.0)


def test_bootstrap_over_counts_is_the_bootstrap_over_seeds():
  kinds = np.repeat([0, 1, 2, 3], [38, 2, 240, 20])
  picks = rng().integers(0, kinds.size, size=(4000, kinds.size))
  drawn = kinds[picks]
  fixed, broke, failed = ((drawn == kind).sum(1) for kind in (0, 1, 3))
  low, high = np.quantile((fixed - broke) / (fixed + failed), [0.025, 0.975])
  estimate = failures_removed(38, 2, 240, 20, rng())
  assert estimate.value == pytest.approx(36 / 58)
  assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.015)


def test_failures_removed_can_be_negative():
  estimate = failures_removed(fixed=1, regressed=9, both_succeeded=86, both_failed=4, rng=rng())
  assert estimate.value == pytest.approx(-8 / 5)
  assert estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize("counts, value", [((5, 0, 20, 0), 1.0), ((0, 0, 20, 5), 0.0), ((5, 0, 0, 0), 1.0)])
def test_failures_removed_keeps_a_width_where_every_resample_agrees(counts, value):
  estimate = failures_removed(*counts, rng())
  exact = wilson(counts[0], 5)
  assert (estimate.value, estimate.low, estimate.high) == (value, exact.low, exact.high)


def test_nothing_failed_so_nothing_can_be_removed():
  pair = paired_comparison([True] * 5, [True] * 4 + [False], rng())
  removed = pair.failures_removed
  assert all(math.isnan(number) for number in (removed.value, removed.low, removed.high))
  assert pair.regressions.value == pytest.approx(0.2)


def test_everything_failed_so_nothing_can_regress():
  pair = paired_comparison([False] * 4, [True] * 4, rng())
  assert pair.failures_removed.value == 1.0
  assert math.isnan(pair.regressions.value) and pair.regressions.n == 0


def test_no_seeds_at_all():
  pair = paired_comparison([], [], rng())
  assert pair.n == 0 and pair.p_value == 1.0 and math.isnan(pair.difference.value)


def test_learning_curve_blocks():
  blocks = learning_curve([0, 1, 2, 4, 5, 6], [0, 1, 1, 1, 0, 1], block=3)
  assert [(b.start, b.stop, b.rate.n) for b in blocks] == [(0, 3, 3), (3, 6, 2), (6, 7, 1)]
  assert [b.rate.value for b in blocks] == pytest.approx([2 / 3, 1 / 2, 1])
  assert learning_curve([], []) == []


def test_verdict_is_clear_only_below_the_threshold():
  assert verdict(fixed=6, regressed=0, both_failed=0, p_value=0.03) == "better"
  assert verdict(fixed=0, regressed=6, both_failed=0, p_value=0.03) == "worse"
  assert verdict(fixed=5, regressed=0, both_failed=0, p_value=0.06) == "unclear"
  assert verdict(fixed=0, regressed=1, both_failed=0, p_value=1.0) == "nothing"


def test_percentiles_pool_decisions_and_summaries():
  assert percentiles([]) == {"p50": None, "p95": None, "p99": None}
  assert pooled_percentiles([[1, 2], [3], []])["p50"] == 2.0
  summary = {"p50": 4.0, "p95": 5.0, "p99": 6.0}
  assert pooled_percentiles([summary, [2.0], []]) == {"p50": 3.0, "p95": 3.5, "p99": 4.0}
  assert pooled_percentiles([[], []])["p99"] is None
