"""Means over trained policies: by hand, and only of what is the same."""

import pytest

from eval import across
from pi0rag_jax.errors import Pi0RagError


def row(difference, *, policy="memory", places=2, removed: float | None = 0.5):
  return {"policy": policy, "stream_episodes": 50, "memory": "own", "baseline": "better_control", "places": places,
          "success_rate": 0.5 + difference, "difference": difference, "failures_removed": removed, "regressions": 0.1}


def test_each_training_is_one_observation():
  sweeps = {"a": [row(0.1)], "b": [row(0.2), row(0.0, policy="other")], "c": [row(0.3)]}
  (found,) = across.rows(sweeps)
  assert (found["sweeps"], found["places"]) == (3, 2)
  # Standard deviation 0.1, t = 4.3027 with two degrees of freedom.
  assert found["difference_interval_95"] == pytest.approx([0.2 - 4.3027 * 0.1 / 3**0.5, 0.2 + 4.3027 * 0.1 / 3**0.5],
                                                          abs=1e-4)
  assert found["p_value"] == found["p_holm"] == pytest.approx(0.0742, abs=1e-4)
  assert found["difference_of_each"] == [0.1, 0.2, 0.3]
  assert found["regressions_interval_95"] == pytest.approx([0.1, 0.1])


def test_methods_are_tested_together_and_a_missing_figure_stays_missing():
  sweeps = {name: [row(0.1 + step, removed=None), row(0.2 - step, policy="other")]
            for name, step in (("a", 0.0), ("b", 0.01), ("c", 0.02))}
  memory, other = across.rows(sweeps)
  assert memory["p_holm"] == pytest.approx(max(memory["p_value"], 2 * other["p_value"]))
  assert "failures_removed" not in memory and "failures_removed" in other


def test_other_places_are_refused():
  with pytest.raises(Pi0RagError, match=r"'memory' after 50 episodes has \{'a': 2, 'b': 3\} places"):
    across.rows({"a": [row(0.1)], "b": [row(0.2, places=3)]})
