"""What a policy asks of its memory; and the unit of distance of one that nobody calibrated."""

import dataclasses
import threading
import time

import numpy as np
import pytest

from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import Record
from pi0rag_jax.robots.panda import ACTIONS
from pi0rag_jax.steering import rules
from pi0rag_jax.steering.retrieval import Retriever, UnitDistance


@pytest.fixture
def memory(tmp_path):
  with Memory.open(tmp_path, key_dim=2, action_horizon=4, action_dim=5, encoder="test", policy="test") as opened:
    yield opened


def record(key_E, episode: int) -> Record:
  chunk_TA = np.zeros((4, 5), np.float32)
  return Record(key=np.asarray(key_E, np.float32), base_chunk=chunk_TA, corrected_chunk=chunk_TA + 0.01,
                kind="correction", outcome="success", provenance={"source": "human", "episode": episode})


def test_the_unit_of_an_uncalibrated_memory_comes_of_its_first_episodes(memory):
  unit = UnitDistance(memory)
  memory.add([record([0, 0], 0), record([0, 0.5], 0)])
  assert float(unit) == np.inf  # of one episode nothing can be said: nothing is near
  alone = Retriever(memory, rules.preset("residual"), ACTIONS, unit_distance=None)(np.zeros((1, 2), np.float32))
  assert alone["mask_BK"].sum() == 2 and np.isinf(alone["distance_BK"]).all()
  memory.add([record([0, 2.5], 1)])
  assert float(unit) == pytest.approx(2.0)  # distances 2.5, 2, 2
  placebo = Retriever(memory, rules.preset("placebo"), ACTIONS, unit_distance=None)
  assert placebo.unit_distance == pytest.approx(2.0)  # keys as they are, of other situations
  memory.add([record([100.0 * i, 0], i) for i in range(2, 20)])
  settled = float(unit)
  memory.add([record([100.0 * i, 1], i) for i in range(20, 40)])
  assert float(unit) == settled > 2.0


def test_the_unit_follows_from_what_is_in_the_memory(memory):
  unit = UnitDistance(memory)
  ids = memory.add([record([0, (5.0 if i < 20 else 3.0) * i], i) for i in range(40)])
  assert float(unit) == 5.0
  memory.remove(ids[:20])  # those that it was measured on
  assert float(unit) == float(UnitDistance(memory)) == 3.0


def test_no_decision_waits_for_the_records_of_a_server(memory, monkeypatch):
  memory.add([record([0, 5.0 * i], i) for i in range(3)])
  monkeypatch.setattr(Memory, "remote", True)
  unit, go_on, read = UnitDistance(memory), threading.Event(), memory.records
  monkeypatch.setattr(memory, "records", lambda: go_on.wait(20) and read())
  memory.remove([2])
  assert float(unit) == float(unit) == 5.0  # as it was, while the network is slow
  go_on.set()
  while float(unit) == 5.0:
    time.sleep(0.001)
  assert float(unit) == 10.0


def test_records_that_others_take_away_during_a_search(memory, monkeypatch):
  """Between the search and what is made of it an id may become another record's."""
  read, query = Retriever(memory, rules.preset("aligned"), ACTIONS, unit_distance=1.0), Memory.query
  key_BE = np.zeros((1, 2), np.float32)

  def say(better):
    memory.add([dataclasses.replace(record([0, 0], 0), corrected_chunk=np.full((4, 5), better))], token="e")

  say(0.01)

  def interrupted(self, *arguments, **options):
    found = query(self, *arguments, **options)
    monkeypatch.setattr(Memory, "query", query)
    memory.undo("e")
    say(0.02)
    return found

  monkeypatch.setattr(Memory, "query", interrupted)
  for better in (0.01, 0.02, 0.02):
    np.testing.assert_allclose(read(key_BE)["residual_BKTA"][0, 0, 0], better, rtol=1e-3)


def test_what_was_derived_of_a_record_is_not_said_of_the_next_one_with_its_id(memory):
  read = Retriever(memory, rules.preset("aligned"), ACTIONS, unit_distance=1.0)
  key_BE = np.zeros((1, 2), np.float32)
  for better in (0.01, 0.02):
    memory.add([dataclasses.replace(record([0, 0], 0), corrected_chunk=np.full((4, 5), better))], token="e")
    np.testing.assert_allclose(read(key_BE)["residual_BKTA"][0, 0, 0], better, rtol=1e-3)
    memory.undo("e")


def test_distances_are_in_units(memory):
  memory.add([record([0, 0], 0), record([0, 2], 1)])
  key_BE = np.array([[0, 1]], np.float32)
  distances = {unit: Retriever(memory, rules.preset("residual"), ACTIONS, unit_distance=unit)(key_BE)["distance_BK"]
               for unit in (0.5, None)}
  np.testing.assert_allclose(np.sort(distances[0.5][0])[:2], 2.0, rtol=1e-3)
  np.testing.assert_allclose(np.sort(distances[None][0])[:2], 0.5, rtol=1e-3)
