"""Plans of data sets: shared out, and filled with successes."""

import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds import plans, registry


def test_a_plan_shares_its_episodes_out():
  counts = plans.planned_tasks(registry.family("mobile"), 11)
  assert list(counts.values()) == [2, 2, 1, 1, 1, 1, 1, 1, 1]  # one task of 'manipulation' has none
  assert sum(plans.planned_tasks(registry.family("mobile"), 1000).values()) == 1000
  with pytest.raises(Pi0RagError, match="has no plan of categories"):
    plans.planned_tasks(registry.family("panda"), 10)


def test_a_plan_is_filled_with_successes_in_turns():
  asked = []
  jobs = plans.fill({"a": 12, "b": 1}, 5, asked.append, lambda job: job != ("a", 6))
  first = [("a", seed) for seed in range(5, 15)]
  assert asked == [[*first, ("b", 5), ("a", 15), ("a", 16)], [("a", 17)]]
  assert jobs == [("a", 5), *[("a", seed) for seed in range(7, 18)], ("b", 5)]
  with pytest.raises(Pi0RagError, match=r"succeeded in 0 of \d+ episodes of 'c'"):
    plans.fill({"c": 2}, 0, asked.append, lambda job: False)
