"""Servers that are killed harm neither their memory nor the next server; the check itself sees harm."""

import numpy as np
import pytest

from eval import server_durability
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import CORRECTION, Record


@pytest.mark.slow
def test_killed_servers_do_no_harm(tmp_path):
  report = server_durability.run(4, 0, tmp_path, "panda_small")
  assert report.problems == []
  assert report.kills == 4 and report.answers > 0 and report.records > 0


def test_a_server_is_asked_killed_and_its_memory_checked(tmp_path, tiny_policy_dir, monkeypatch):
  monkeypatch.setattr(server_durability, "_EARLY_SHARE", 0.0)
  report = server_durability.run(1, 0, tmp_path, str(tiny_policy_dir))
  assert report.problems == []
  assert (report.kills, report.killed_before_serving) == (1, 0)
  assert report.answers >= 2 and report.records > 0


def test_the_check_sees_what_is_lost(tmp_path):
  chunk_TA = np.zeros((3, 2))
  with Memory.open(tmp_path, key_dim=2, action_horizon=3, action_dim=2, encoder="e", policy="p") as memory:
    memory.add([Record(np.ones(2), chunk_TA, chunk_TA, CORRECTION, "success")])
    assert server_durability.check(memory, tmp_path, 1) == []
    assert server_durability.check(memory, tmp_path, 2) == ["2 records were written, 1 are there"]
