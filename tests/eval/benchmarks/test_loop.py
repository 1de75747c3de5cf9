"""Rows of `loop`: cycles on the clock, and what a decision takes on the device and beyond it."""

import pytest


def test_a_loop_counts_what_came_late(run):
  slow, impossible = run("loop", "--size=dummy", "--cameras=1", "--rates=2,100000", "--cycles=5", "--records=100",
                         "--repeats=3", "--steps=2")
  assert impossible["missed"] == 5 and slow["achieved_hz"] <= 2 < impossible["achieved_hz"]
  assert {"prepare_p50_ms", "search_p50_ms", "steer_p50_ms"} <= set(slow)
  for row in (slow, impossible):
    assert row["device_work_p50_ms"] > 0 and row["host_work_p50_ms"] == pytest.approx(slow["host_work_p50_ms"])
    assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] and row["jitter_ms"] >= 0
