"""Which records come of episodes, and what they say of themselves."""

import dataclasses

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import lessons
from pi0rag_jax.learning.lessons import CorrectionConfig, RecordContext
from pi0rag_jax.robots import panda
from pi0rag_jax.worlds.episode import Job, Trace

CONTEXT = RecordContext("pick_and_place", "pick up the red cube", {"condition": "nominal", "seed": 7}, "miss")


def ticks(records):
  return [record.provenance["tick"] for record in records]


def test_relabelled_takes_the_window_around_the_rewind(make_steps):
  steps = lessons.window(make_steps([0.01] * 10), 5, CorrectionConfig(labels_before=3, labels_after=2))
  records = lessons.relabelled(steps, np.zeros((5, 16, 5), np.float32), CONTEXT)
  assert ticks(records) == [8, 12, 16, 20, 24]
  assert all(r.kind == "correction" and r.failure_kind == "miss" for r in records)
  np.testing.assert_array_equal(records[0].corrected_chunk, 0)
  np.testing.assert_allclose(records[0].base_chunk[:, 1], 0.01)


def test_a_rewind_to_the_start_has_fewer_labels_before_it(make_steps):
  assert len(lessons.window(make_steps([0.01] * 4), 0, CorrectionConfig(labels_after=2))) == 2


def test_anchors_keep_what_was_executed(make_steps):
  records = lessons.anchors(Trace(Job(7, 0), steps=make_steps([0.0, 0.01])), CONTEXT)
  assert [r.kind for r in records] == ["anchor"] * 2
  np.testing.assert_allclose(records[1].corrected_chunk[:, 1], 0.01)
  assert records[0].provenance == {"source": "policy", "condition": "nominal", "seed": 7, "tick": 0}


def test_a_retry_keeps_what_was_executed_across_its_decisions(make_steps):
  records = lessons.retried(Trace(Job(7, 0, attempt=1), steps=make_steps([0.01, 0.02, 0.03])), CONTEXT)
  assert [r.provenance["source"] for r in records] == ["retry"] * 3
  np.testing.assert_allclose(records[0].corrected_chunk[:, 1], [0.01] * 4 + [0.02] * 4 + [0.03] * 8)
  np.testing.assert_allclose(records[1].corrected_chunk[:, 1], [0.02] * 4 + [0.03] * 12)
  np.testing.assert_allclose(records[0].base_chunk[:, 1], 0.01)


def test_failed_chunks_are_kept_where_they_are_asked_for(make_steps):
  steps = make_steps([0.01] * 6)
  assert lessons.failed(steps, 2, CONTEXT, CorrectionConfig()) == []
  records = lessons.failed(steps, 2, CONTEXT, CorrectionConfig(failed_chunks=3))
  assert ticks(records) == [8, 12, 16] and {r.kind for r in records} == {"failure"}


def helped(make_steps, *by):
  """Returns a trace of one decision per name of who acted there; each moves by its number of cm a tick."""
  steps = [dataclasses.replace(step, by=name) for step, name in
           zip(make_steps([0.01 * (i + 1) for i in range(len(by))]), by)]
  return Trace(Job(7, 0, watched=True), "pick it up", steps, outcome="success", ticks=4 * len(by) - 1)


def test_a_shared_episode_teaches_what_was_done_and_before_it_the_way_without_the_detour(make_steps):
  trace = helped(make_steps, "policy", "policy", "expert", "expert", "policy")
  records = lessons.shared(trace, panda.ACTIONS, CONTEXT, CorrectionConfig(path_before=1))
  assert [(r.provenance["tick"], r.kind, r.outcome, r.provenance["source"]) for r in records] == [
    (4, "correction", "failure", "expert"), (8, "correction", "success", "expert"),
    (12, "correction", "success", "expert"), (0, "anchor", "success", "policy"), (16, "anchor", "success", "policy")]
  done = [0.03] * 4 + [0.04] * 4  # by the helper; then the policy's own plan goes on, as fast as it may
  np.testing.assert_allclose(np.float32(records[1].corrected_chunk[:, 1]), done + [0.015] * 8, atol=1e-4)
  # Four ticks of 0.02 m lead towards the path; a tick makes at most 0.015 m.
  sent = np.float32(records[0].corrected_chunk[:, 1])
  assert sent.max() <= 0.0151 and sent.sum() > 0.9 * 16 * 0.015
  only = lessons.shared(trace, panda.ACTIONS, CONTEXT, CorrectionConfig(path_before=1, anchors_between=False))
  assert {r.kind for r in only} == {"correction"}


def test_the_path_before_a_takeover_does_not_reach_into_the_one_before(make_steps):
  trace = helped(make_steps, "expert", "policy", "expert")
  records = lessons.shared(trace, panda.ACTIONS, CONTEXT, CorrectionConfig(path_before=5))
  assert sorted(r.provenance["tick"] for r in records) == [0, 4, 8] and len(records) == 3


def test_what_was_done_in_vain_comes_before_a_takeover(make_steps):
  trace = helped(make_steps, "policy", "policy", "expert", "policy")
  records = lessons.failed_before(trace, CONTEXT, CorrectionConfig(failed_chunks=1))
  assert [(r.provenance["tick"], r.kind) for r in records] == [(4, "failure")]
  assert lessons.failed_before(trace, CONTEXT, CorrectionConfig()) == []


def test_a_gesture_goes_straight_and_within_the_limits():
  chunk_TA = lessons.straight(np.array([0.08, -0.04, 0.0, 0.0, 1.0]), panda.ACTIONS, 16)
  assert chunk_TA.shape == (16, 5) and chunk_TA.dtype == np.float32
  np.testing.assert_allclose(chunk_TA, np.tile([0.005, -0.0025, 0, 0, 1], (16, 1)), rtol=1e-6)
  assert lessons.straight(np.array([0.24, 0, 0, 0, 0]), panda.ACTIONS, 16)[:, 0].max() <= np.float32(0.015)


@pytest.mark.parametrize(("gesture", "message"), [
  ([0.3, 0, 0, 0, 0], "entry 0 of the gesture is 0.3, allowed: -0.24 to 0.24 in the 16 ticks"),
  ([0, 0, 0, 0, 1.5], "entry 4 of the gesture is 1.5, allowed: 0 to 1$"),
  ([0, np.nan, 0, 0, 0], "entry 1 of the gesture is nan"), ([0, 0], "5 numbers.*got 2")])
def test_gestures_that_the_robot_does_not_make(gesture, message):
  with pytest.raises(Pi0RagError, match=message):
    lessons.straight(np.array(gesture, float), panda.ACTIONS, 16)
