"""How often experts succeed: counted over seeds, and gone on with."""

import json
import types

import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim.mobile import tasks
from pi0rag_jax.worlds import experts
from pi0rag_jax.worlds.world import WorldConfig


def test_experts_are_counted_and_a_second_call_adds_what_is_missing(tmp_path, capsys):
  values = types.SimpleNamespace(world="mobile", options="", tasks=["pick_up"], condition="nominal", episodes=2,
                                 seed=390_001, out=str(tmp_path / "experts.json"))
  experts.run(values)
  values.tasks = ["pick_up", "close_drawer"]
  experts.run(values)
  assert capsys.readouterr().out.count("2 of 2") == 2
  rows = json.loads((tmp_path / "experts.json").read_text("utf8"))["rows"]
  assert [(row["task"], row["n"], row["successes"], row["failed_seeds"]) for row in rows] == [
    ("pick_up", 2, 2, []), ("close_drawer", 2, 2, [])]
  assert rows[0]["ticks_max"] >= rows[0]["ticks_mean"] > 10 and rows[0]["interval_95"][0] < 1


def test_a_failure_is_counted_with_its_seed(monkeypatch):
  monkeypatch.setattr(tasks, "succeeded", lambda errand, physics: False)
  found = experts.measure(WorldConfig("pick_up", world="mobile"), range(390_001, 390_002))
  assert (found["successes"], found["failed_seeds"], found["ticks_max"]) == (0, [390_001], 150)


def test_a_world_without_an_expert_is_refused():
  with pytest.raises(Pi0RagError, match="has no expert"):
    experts.measure(WorldConfig("CartPole-v1", world="gymnasium/CartPole-v1", options={"robot": "plain"}), range(1))
