"""The chunk broker does what openpi's was recorded to do."""

import concurrent.futures
import queue

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.serving.chunk_broker import ActionChunkBroker, Chunks, RealTimeChunkBroker

from .conftest import as_arrays


class Counting:
  """Answers with chunks of five actions that count up, a hundred per call."""

  def __init__(self):
    self.calls = self.resets = 0

  def infer(self, obs):
    self.calls += 1
    return {"actions": 100 * self.calls + np.arange(15).reshape(5, 3), "state": np.arange(4), "t": {"ms": 1.0},
            "more": [np.arange(3.0)]}

  def reset(self):
    self.resets += 1


def test_steps_are_openpis(recorded):
  broker = ActionChunkBroker(Counting(), 3)
  for wanted in as_arrays(recorded["action_chunk_broker"]):
    found = broker.infer({})
    found.pop("more")
    assert found.keys() == wanted.keys() and found["t"] == wanted["t"]
    for key in ("actions", "state"):
      np.testing.assert_array_equal(found[key], wanted[key])
      assert isinstance(found[key], np.ndarray) and found[key].shape == wanted[key].shape


def test_lists_are_cut_too():
  broker = ActionChunkBroker(Counting(), 2)
  assert [broker.infer({})["more"] for _ in range(3)] == [[0.0], [1.0], [0.0]]


def test_a_reset_asks_anew():
  policy = Counting()
  broker = ActionChunkBroker(policy, 3)
  broker.infer({})
  broker.reset()
  assert broker.infer({})["actions"][0] == 200 and policy.resets == 1


def test_what_is_too_short_is_named():
  with pytest.raises(Pi0RagError, match=r"'more' has shape \(3,\) .*: too short for action_horizon 4"):
    ActionChunkBroker(Counting(), 4).infer({})
  with pytest.raises(Pi0RagError, match="action_horizon is 0, must be 1 or more"):
    ActionChunkBroker(Counting(), 0)


class Slow:
  """Answers once it is let, with chunks of twelve actions: a hundred per call, and the tick."""

  def __init__(self):
    self.seen, self.let = [], queue.Queue()

  def infer(self, obs):
    self.seen.append(obs)
    if len(self.seen) > 1:
      self.let.get(timeout=10)
    return {"actions": 100 * len(self.seen) + np.arange(12)[:, None]}

  def reset(self):
    pass


def test_a_robot_goes_on_while_its_policy_thinks():
  policy = Slow()
  broker = RealTimeChunkBroker(policy, 4)
  ticks = [int(broker.infer({"tick": tick})[0]) for tick in range(6)]
  assert ticks == [100, 101, 102, 103, 104, 105] and broker.chunks.pending is not None
  policy.let.put(None)
  concurrent.futures.wait([broker.chunks.pending], timeout=10)
  # Asked for at tick 4, there at tick 6: its first two actions are in the past.
  assert [int(broker.infer({"tick": tick})[0]) for tick in (6, 7)] == [202, 203]
  policy.let.put(None)
  assert int(broker.infer({"tick": 8})[0]) == 204
  concurrent.futures.wait([broker.chunks.pending], timeout=10)
  broker.infer({"tick": 9})
  assert policy.seen == [{"tick": 0}, {"tick": 4, "real_time": {"passed": 4, "delay": 0}},
                         {"tick": 8, "real_time": {"passed": 4, "delay": 2}}]
  assert list(broker.chunks.delays) == [2, 1] and broker.waits == 0
  broker.close()


def test_a_chunk_that_is_used_up_is_waited_for():
  policy = Slow()
  broker = RealTimeChunkBroker(policy, 4, real_time=False)
  for tick in range(12):
    broker.infer({"tick": tick})
  policy.let.put(None)
  assert int(broker.infer({"tick": 12})[0]) == 208 and broker.waits == 1
  assert policy.seen[1] == {"tick": 4}
  broker.reset()
  policy.let.put(None)
  assert int(broker.infer({"tick": 0})[0]) == 300
  broker.close()
  with pytest.raises(Pi0RagError, match="execute_steps is 0"):
    RealTimeChunkBroker(policy, 0)


def test_chunks_never_wait_and_are_dropped():
  policy = Slow()
  chunks = Chunks(policy, 3, apart=False)
  assert chunks.due and chunks.action() is None and chunks.arrived() is None
  chunks.ask({})
  assert not chunks.due and chunks.arrived()["actions"][0] == 100 and chunks.arrived() is None
  for tick in range(3):
    assert chunks.action() == 100 + tick and not chunks.due
    chunks.passed()
  assert chunks.due
  chunks.drop()
  assert chunks.action() is None and chunks.due
  chunks.close()


def test_what_is_under_way_is_dropped_too():
  policy = Slow()
  chunks = Chunks(policy, 3, real_time=True)
  for begun in range(2):
    chunks.ask({})
    chunks.drop()
    policy.let.put(None) if begun else None
    concurrent.futures.wait([chunks.pending], timeout=10)
    assert chunks.arrived() is not None and chunks.action() is None and chunks.due
  assert policy.seen[1] == {"real_time": {"passed": 12, "delay": 0}}, "it goes on from nothing"
  chunks.close()


def test_a_slow_policy_is_asked_while_its_chunk_still_lasts():
  chunks = Chunks(Slow(), 12, apart=False)
  chunks.delays.append(4)
  chunks.ask({})
  chunks.arrived()
  for tick in range(8):
    assert not chunks.due, tick
    chunks.passed()
  assert chunks.due


def test_a_policys_error_is_for_who_asks():
  class Broken(Slow):
    def infer(self, obs):
      raise Pi0RagError("no weights")

  chunks = Chunks(Broken(), 3)
  chunks.ask({})
  concurrent.futures.wait([chunks.pending], timeout=10)
  with pytest.raises(Pi0RagError, match="no weights"):
    chunks.arrived()
  assert chunks.due
  chunks.close()
