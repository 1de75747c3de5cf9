"""The chunk broker does what openpi's was recorded to do."""

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.serving.chunk_broker import ActionChunkBroker

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
