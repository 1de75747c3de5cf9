"""Means over places: hand-worked shares, pairing by seed, and what is left out."""

import numpy as np
import pytest

from eval import overall
from eval.records import EpisodeRecord


def episodes(condition, policy, outcomes, *, stream="", after=0, came_from="", pooled=0):
  return [EpisodeRecord("eval", policy, "task", condition, stream, seed, seed, outcome, stream_episodes=after,
                        came_from=came_from, pooled=pooled)
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
  row, against_better = overall.rows(cells, ("base", "base_z0"))
  assert against_better == {**row, "baseline": "better_control"}
  assert (row["policy"], row["stream_episodes"], row["baseline"], row["cells"], row["n"]) == (
    "memory", 50, "base_z0", 2, 6)
  assert row["success_rate"] == pytest.approx((0.5 + 1.0) / 2)
  assert row["failures_removed"] == pytest.approx(((1 - 1) / 4 + 1 / 2) / (2 / 4 + 1 / 2))
  assert row["regressions"] == pytest.approx((1 / 4) / (2 / 4 + 1 / 2))


def test_the_better_control_is_chosen_in_each_place_and_what_a_person_gave_is_counted():
  s, f = "success", "failure"
  pooled = {"stream": "all places", "after": 2, "pooled": 2}
  cells = {
    ("task", "a", "base", "", 0): episodes("a", "base", [f, f, f, s]),
    ("task", "a", "base_z0", "", 0): episodes("a", "base_z0", [f, f, s, s]),
    ("task", "b", "base", "", 0): episodes("b", "base", [s, s, s, f]),
    ("task", "b", "base_z0", "", 0): episodes("b", "base_z0", [f, f, f, f]),
    ("task", "a", "memory", "task/a", 2): episodes("a", "memory", [s, f, s, s], stream="task/a", after=2),
    ("task", "b", "memory", "task/b", 2): episodes("b", "memory", [s, s, f, s], stream="task/b", after=2),
    ("task", "c", "base", "", 0): episodes("c", "base", [s, s, s, s]),
    ("task", "c", "memory", "all places", 2): episodes("c", "memory", [s, s, s, f], **pooled),
    ("task", "a", "memory", "all places", 2): episodes("a", "memory", [s, s, s, s], **pooled)}
  streams = [EpisodeRecord("stream", "base", "task", place, f"task/{place}", seed, seed, s, corrected=seed < 2,
                           extra={"helped_s": 30.0 if seed < 2 else 0.0}) for place in "ab" for seed in range(4)]
  fits = [{"policy": "memory", "stream": f"task/{place}", "stream_episodes": 2, "bytes": 100, "seconds": seconds,
           "inversion_seconds": 1.0, "inversion_error": 0.1} for place, seconds in (("a", 2.0), ("b", 4.0))]
  found = {(row["policy"], row["memory"]): row for row in overall.rows(
    cells, (), streams=streams, memory_bytes={"task/a": 10, "task/b": 20}, fits=fits)}
  own = found["memory", "own"]
  assert own["baseline"] == "better_control"
  assert own["baseline_success_rate"] == pytest.approx((0.5 + 0.75) / 2) and own["success_rate"] == 0.75
  assert (own["fixed"], own["regressed"], own["difference"]) == (2, 1, pytest.approx(0.125))
  assert (own["corrected_episodes"], own["helped_minutes"]) == (2, 1.0)
  assert own["points_per_corrected_episode"] == pytest.approx(6.25)
  assert (own["memory_bytes"], own["fit_bytes"], own["fit_seconds"]) == (15, 100, 4.0)
  assert found["base", "own"]["difference"] == pytest.approx((-0.25 + 0) / 2)
  assert found["memory", "held_out"]["difference"] == -0.25 and found["memory", "pooled"]["difference"] == 0.5
  assert found["base", "held_out"]["success_rate"] == 1 and found["memory", "held_out"]["corrected_episodes"] is None


def test_streams_of_a_place_widen_the_intervals():
  cells_C4 = np.array([[20, 0, 20, 10], [10, 0, 20, 20], [15, 5, 20, 10]])
  episodes = overall.compare(cells_C4, np.random.default_rng(0))
  assert overall.over_streams(cells_C4, ["a", "b", "c"], episodes) is None
  streams = overall.over_streams(cells_C4, ["a", "a", "b"], episodes)
  assert streams is not None
  # Place a has success 0.8 and 0.6: pooled variance 0.02 with one degree of freedom, over three cells.
  half = 12.7062 * np.sqrt(0.02 / 3)
  assert streams.success.high - streams.success.value == pytest.approx(
    np.hypot(half, episodes.success.high - episodes.success.value), rel=1e-4)
  same = overall.over_streams(cells_C4[[0, 0, 2]], ["a", "a", "b"], episodes)
  assert same is not None and same.difference.low == pytest.approx(episodes.difference.low)


def test_intervals_over_streams_hold_what_they_promise():
  rng, hits = np.random.default_rng(3), 0
  for _ in range(60):
    rates_S = 0.5 + 0.2 * rng.standard_normal(3).clip(-2, 2)  # streams differ far more than 200 episodes would say
    mended_S = rng.binomial(200, rates_S)
    cells_C4 = np.stack([mended_S, 0 * mended_S, 0 * mended_S, 200 - mended_S], axis=1)
    alone = overall.compare(cells_C4, rng, resamples=100)
    streams = overall.over_streams(cells_C4, "aaa", alone)
    assert streams is not None
    hits += streams.success.low <= 0.5 <= streams.success.high
  assert hits >= 54


def test_rows_are_tested_together():
  s, f = "success", "failure"
  cells = {("task", "a", "base_z0", "", 0): episodes("a", "base_z0", [f] * 8)}
  for method, outcomes in (("memory", [s] * 8), ("other", [s] * 4 + [f] * 4)):
    cells["task", "a", method, "task/a", 5] = episodes("a", method, outcomes, stream="task/a", after=5)
  for anytime_valid, p in ((False, 2 / 2**8), (True, 0.019891)):
    memory, other = overall.rows(cells, ("base_z0",), anytime_valid=anytime_valid)[::2]
    assert memory["p_value"] == pytest.approx(p, rel=1e-4) and memory["p_holm"] == pytest.approx(2 * p, rel=1e-4)
    assert other["p_holm"] == other["p_value"] > 0.1


def test_a_baseline_that_never_fails_leaves_nothing_to_remove():
  result = overall.compare(np.array([[0, 1, 9, 0]]), np.random.default_rng(0))
  assert np.isnan(result.failures_removed.value) and result.regressions.value == pytest.approx(0.1)
