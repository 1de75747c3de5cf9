"""Which records come of episodes, and what they say of themselves."""

import numpy as np

from pi0rag_jax.learning import corrections
from pi0rag_jax.learning.corrections import CorrectionConfig, RecordContext
from pi0rag_jax.robots import panda
from pi0rag_jax.worlds.episode import Job, Trace

CONTEXT = RecordContext("pick_and_place", "pick up the red cube", {"condition": "nominal", "seed": 7}, "miss")


def ticks(records):
  return [record.provenance["tick"] for record in records]


def test_relabelled_takes_the_window_around_the_rewind(make_steps):
  steps = corrections.window(make_steps([0.01] * 10), 5, CorrectionConfig(labels_before=3, labels_after=2))
  records = corrections.relabelled(steps, np.zeros((5, 16, 5), np.float32), CONTEXT)
  assert ticks(records) == [8, 12, 16, 20, 24]
  assert all(r.kind == "correction" and r.failure_kind == "miss" for r in records)
  np.testing.assert_array_equal(records[0].corrected_chunk, 0)
  np.testing.assert_allclose(records[0].base_chunk[:, 1], 0.01)


def test_a_rewind_to_the_start_has_fewer_labels_before_it(make_steps):
  assert len(corrections.window(make_steps([0.01] * 4), 0, CorrectionConfig(labels_after=2))) == 2


def test_anchors_keep_what_was_executed(make_steps):
  records = corrections.anchors(Trace(Job(7, 0), steps=make_steps([0.0, 0.01])), CONTEXT)
  assert [r.kind for r in records] == ["anchor"] * 2
  np.testing.assert_allclose(records[1].corrected_chunk[:, 1], 0.01)
  assert records[0].provenance == {"source": "policy", "condition": "nominal", "seed": 7, "tick": 0}


def test_a_retry_keeps_what_was_executed_across_its_decisions(make_steps):
  records = corrections.retried(Trace(Job(7, 0, attempt=1), steps=make_steps([0.01, 0.02, 0.03])), CONTEXT)
  assert [r.provenance["source"] for r in records] == ["retry"] * 3
  np.testing.assert_allclose(records[0].corrected_chunk[:, 1], [0.01] * 4 + [0.02] * 4 + [0.03] * 8)
  np.testing.assert_allclose(records[1].corrected_chunk[:, 1], [0.02] * 4 + [0.03] * 12)
  np.testing.assert_allclose(records[0].base_chunk[:, 1], 0.01)


def test_failed_chunks_are_kept_where_they_are_asked_for(make_steps):
  steps = make_steps([0.01] * 6)
  assert corrections.failed(steps, 2, CONTEXT, CorrectionConfig()) == []
  records = corrections.failed(steps, 2, CONTEXT, CorrectionConfig(failed_chunks=3))
  assert ticks(records) == [8, 12, 16] and {r.kind for r in records} == {"failure"}


def test_deeds_are_what_was_executed_and_before_it_the_way_without_the_detour(make_steps):
  lost, helped = make_steps([0.01, -0.01, -0.01]), make_steps([0.02, 0.03])
  trace = Trace(Job(7, 0, by_expert=True), steps=helped, ticks=7)
  config = CorrectionConfig(taught_by="deeds", path_before=1)
  records = corrections.deeds(lost, trace, panda.ACTIONS, CONTEXT, config)
  assert [r.provenance["tick"] for r in records] == [4, 0, 4] and [r.outcome for r in records] == [
    "failure", "success", "success"]
  done = [0.02] * 4 + [0.03] * 3 + [0.0] * 9
  np.testing.assert_allclose(np.float32(records[1].corrected_chunk[:, 1]), np.float16(done), atol=1e-5)
  np.testing.assert_allclose(np.float32(records[2].corrected_chunk[:, 1]), np.float16(done[4:] + [0.0] * 4), atol=1e-5)
  # Four ticks of -0.01 m that the path makes up for, at most 0.015 m a tick.
  assert abs(np.float32(records[0].corrected_chunk[:, 1]).sum() - (sum(done) - 0.04)) < 1e-3
  assert np.float32(records[0].corrected_chunk[:, 1]).max() <= 0.0151


def test_no_step_before_the_first_is_recorded(make_steps):
  trace = Trace(Job(7, 0, by_expert=True), steps=make_steps([0.01]), ticks=4)
  assert len(corrections.deeds(make_steps([0.01]), trace, panda.ACTIONS, CONTEXT, CorrectionConfig(path_before=5))) == 1
