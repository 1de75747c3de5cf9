"""Where a failure began, and which records come of it."""

import numpy as np
import pytest

from pi0rag_jax.learning import corrections
from pi0rag_jax.learning.corrections import CorrectionConfig, RecordContext
from pi0rag_jax.learning.trace import Job, Step, Trace
from pi0rag_jax.policy.spec import PANDA_ACTIONS as LAYOUT

CONTEXT = RecordContext("pick_and_place", "pick up the red cube", "nominal", seed=7)


def steps(sideways_m):
  """Returns one step per entry, whose executed chunk moves so many metres a tick along y."""
  found = []
  for i, dy in enumerate(sideways_m):
    chunk = np.zeros((16, 5), np.float32)
    chunk[:, 1] = dy
    found.append(Step(4 * i, f"moment {i}", np.full(3, i, np.float32), chunk, chunk, 0, np.zeros(0)))
  return found


def expert(count):
  return np.zeros((count, 16, 5), np.float32)


@pytest.mark.parametrize(("sideways_m", "index"), [
    ([0, 0, 0.01, 0.01, 0], 2),
    ([0, 0.01, 0, 0.01, 0.01], 3),  # one alone does not persist
    ([0, 0.001, 0.002, 0], 2),  # none persists: the largest
])
def test_divergence(sideways_m, index):
  config = CorrectionConfig(divergence_cost=1.5, persistence=2)
  found = steps(sideways_m)
  assert corrections.divergence(found, expert(len(found)), LAYOUT, config, band=6) == index


def test_relabelled_takes_the_window_around_the_divergence():
  trace = Trace(Job(7, 0), steps=steps([0.01] * 10))
  records = corrections.relabelled(trace, expert(10), 5, CONTEXT, CorrectionConfig(), "miss")
  assert [r.provenance["tick"] for r in records] == [8, 12, 16, 20, 24]
  assert all(r.kind == "correction" and r.failure_kind == "miss" for r in records)
  np.testing.assert_array_equal(records[0].corrected_chunk, 0)
  np.testing.assert_allclose(records[0].base_chunk[:, 1], 0.01)


def test_a_divergence_at_the_start_has_fewer_labels_before_it():
  trace = Trace(Job(7, 0), steps=steps([0.01] * 4))
  assert len(corrections.relabelled(trace, expert(4), 0, CONTEXT, CorrectionConfig(), "miss")) == 2


def test_anchors_keep_what_was_executed():
  trace = Trace(Job(7, 0), steps=steps([0.0, 0.01]))
  records = corrections.anchors(trace, CONTEXT)
  assert [r.kind for r in records] == ["anchor"] * 2
  np.testing.assert_allclose(records[1].corrected_chunk[:, 1], 0.01)
  assert records[0].provenance == {"source": "policy", "condition": "nominal", "seed": 7, "tick": 0}
