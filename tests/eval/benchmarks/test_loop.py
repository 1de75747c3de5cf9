"""Rows of `loop`: cycles on the clock, and what a decision takes on the device and beyond it."""

import pytest

from eval.benchmarks import loop
from pi0rag_jax.errors import Pi0RagError


def test_a_loop_counts_what_came_late(run):
  slow, impossible = run("loop", "--size=dummy", "--cameras=1", "--rates=2,100000", "--cycles=5", "--records=100",
                         "--repeats=3", "--steps=2")
  assert impossible["missed"] == 5 and slow["achieved_hz"] <= 2 < impossible["achieved_hz"]
  assert {"prepare_p50_ms", "search_p50_ms", "steer_p50_ms"} <= set(slow)
  for row in (slow, impossible):
    assert row["device_work_p50_ms"] > 0 and row["host_work_p50_ms"] == pytest.approx(slow["host_work_p50_ms"])
    assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] and row["jitter_ms"] >= 0


def test_a_loop_may_search_inside_its_one_call(run, monkeypatch, capsys):
  def agent(policy, records, config, *, feeding):
    raise Pi0RagError(f"fed by {feeding}")

  monkeypatch.setattr(loop, "Agent", agent)
  for feeding in ("overlap", "callback"):
    run("loop", "--size=dummy", "--cameras=1", "--records=2", f"--feeding={feeding}")
    assert capsys.readouterr().err.endswith(f"fed by {feeding}\n")
