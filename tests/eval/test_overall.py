"""Means over places: hand-worked shares, pairing by seed, and what is left out."""

import numpy as np
import pytest

from eval import overall
from eval.records import EpisodeRecord


def episodes(condition, policy, outcomes, *, stream="", after=0, came_from=""):
  return [EpisodeRecord("eval", policy, "task", condition, stream, seed, seed, outcome, stream_episodes=after,
                        came_from=came_from)
          for seed, outcome in enumerate(outcomes)]


def test_cells_weigh_the_same_whatever_their_size():
  # fixed, broken, worked, failed
  result = overall.compare(np.array([[10, 0, 70, 20], [20, 10, 10, 10]]), np.random.default_rng(0))
  assert result.success.value == pytest.approx((0.8 + 0.6) / 2)
  assert result.baseline.value == pytest.approx((0.7 + 0.4) / 2)
  assert result.failures_removed.value == pytest.approx((0.1 + 0.4 - 0.2) / (0.3 + 0.6))
  assert result.regressions.value == pytest.approx(0.2 / (0.7 + 0.4))
  for estimate in (result.success, result.failures_removed, result.regressions):
    assert estimate.low < estimate.value < estimate.high


def test_rows_pair_seeds_and_leave_crashes_and_foreign_memories_out():
  s, f, c = "success", "failure", "crashed"
  cells = {
    ("task", "a", "base_z0", "", 0): episodes("a", "base_z0", [f, f, s, s, s]),
    ("task", "a", "memory", "task/a", 50): episodes("a", "memory", [s, f, s, f, c], stream="task/a", after=50),
    ("task", "b", "base_z0", "", 0): episodes("b", "base_z0", [f, s]),
    ("task", "b", "memory", "task/b", 50): episodes("b", "memory", [s, s], stream="task/b", after=50),
    ("task", "b", "memory", "b2", 50): episodes("b", "memory", [f, f], stream="b2", after=50, came_from="a"),
  }
  (row,) = overall.rows(cells, ("base", "base_z0"))
  assert (row["policy"], row["stream_episodes"], row["baseline"], row["cells"], row["n"]) == (
    "memory", 50, "base_z0", 2, 6)
  assert row["success_rate"] == pytest.approx((0.5 + 1.0) / 2)
  assert row["failures_removed"] == pytest.approx(((1 - 1) / 4 + 1 / 2) / (2 / 4 + 1 / 2))
  assert row["regressions"] == pytest.approx((1 / 4) / (2 / 4 + 1 / 2))


def test_a_baseline_that_never_fails_leaves_nothing_to_remove():
  result = overall.compare(np.array([[0, 1, 9, 0]]), np.random.default_rng(0))
  assert np.isnan(result.failures_removed.value) and result.regressions.value == pytest.approx(0.1)
