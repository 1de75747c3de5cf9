"""The measure of failure detectors: true failures from hand-made truths, scores, and a run from end to end."""

import json

import numpy as np
import pytest

from eval import detectors, true_failures
from eval.true_failures import Event, Rules
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning.detectors import Detection, DetectorConfig
from pi0rag_jax.sim.truth import Truth
from pi0rag_jax.worlds.episode import Job, Trace


def trace(rows, outcome="success"):
  """Returns an episode with one tick for each (held, height, push, arm, gripper open)."""
  truths = [Truth(held, {"cube": height}, arm, "cube" if arm else "", push) for held, height, push, arm, _ in rows]
  return Trace(Job(1, 0), sensors=[{"gripper_command": float(is_open)} for *_, is_open in rows], truths=truths,
               outcome=outcome, ticks=len(rows))


def idle(count, *, is_open=True, height=0.02, push=0.0, arm=0.0):
  return [("", height, push, arm, is_open)] * count


def hold(count, height=0.1):
  return [("cube", height, 1.0, 0.0, False)] * count


@pytest.mark.parametrize(("rows", "expected"), [
    (idle(20), []),
    (idle(5) + idle(4, is_open=False) + idle(5), [("miss", 9)]),
    (idle(5) + idle(3, is_open=False) + idle(5), []),  # no time to close
    (idle(2) + hold(6) + idle(8, is_open=False), [("drop", 9)]),
    (idle(2) + hold(6, height=0.02) + idle(8), []),  # put down
    (idle(2) + hold(6) + idle(2, height=0.1) + idle(8), [("drop", 9)]),  # let fall
    (idle(2) + hold(6) + idle(2, is_open=False) + hold(4) + idle(4, height=0.1), []),  # caught again
    (idle(3) + idle(3, push=70.0) + idle(5), []),  # put down firmly
    (idle(3) + idle(6, push=70.0) + idle(5), [("collision", 4)]),
    (idle(3) + idle(1, push=200.0) + idle(5), [("collision", 4)]),
    (idle(3) + idle(2, arm=4.0) + idle(5), [("collision", 4)]),
])
def test_true_failures(rows, expected):
  assert [(event.kind, event.tick) for event in true_failures.events(trace(rows))] == expected


def test_the_kind_is_of_what_was_not_made_up_for():
  rows = idle(2) + idle(5, is_open=False) + idle(2) + hold(6, height=0.02) + idle(8)
  failed = trace(rows, "failure")
  events, grasps = true_failures.events(failed), true_failures.grasps(failed.truths, Rules())
  assert [event.kind for event in events] == ["miss", "timeout"]
  assert true_failures.kind(events, grasps) == "timeout" and true_failures.kind(events, []) == "miss"


def test_scores_count_detections_and_failures_apart():
  score = detectors.Score()
  detections = [Detection("miss", tick, tick, 0.9) for tick in (12, 40)]
  score.add(detections, [Event("miss", 10, 12), Event("miss", 90, 92)])
  summary = score.summary()
  assert summary["precision"]["rate"] == summary["recall"]["rate"] == 0.5
  assert summary["precision"]["n"] == 2 and summary["delay_ticks"]["median"] == 2


def test_forced_failures_of_an_expert_are_noticed():
  traces = list(detectors.disturbed_traces("pick_and_place", "nominal", range(300_100, 300_104)))
  report = detectors.measure(traces, DetectorConfig())
  json.dumps(report)
  assert sum(report["episodes"].values()) == 4 and sum(len(t.truths) == len(t.sensors) for t in traces) == 4
  found = report["kinds"]["miss"]["recall"]["n"] + report["kinds"]["drop"]["recall"]["n"]
  assert found >= 2
  for kind in ("miss", "drop"):
    rates = [report["kinds"][kind][name].get("rate", 1.0) for name in ("precision", "recall")]
    assert rates == [1.0, 1.0]


def test_thresholds_from_flags():
  changed = detectors.thresholds(["held_ticks=5", "arm_force_N=2.5"], "pick_and_place")
  assert changed == DetectorConfig(held_ticks=5, arm_force_N=2.5)
  with pytest.raises(Pi0RagError, match="Did you mean 'held_ticks'"):
    detectors.thresholds(["held_tick=5"], "pick_and_place")
  with pytest.raises(Pi0RagError, match="no number"):
    detectors.thresholds(["held_ticks=some"], "pick_and_place")
  assert np.isinf(detectors.thresholds(["release_height_m=inf"], "insertion").release_height_m)
  assert detectors.thresholds([], "stacking_three") == DetectorConfig(put_height_m=0.1)
