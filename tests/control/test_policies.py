"""What the loop asks for chunks: a policy that learns nothing, and one that learns in this process."""

import pytest

from pi0rag_jax.control.policies import TaughtHere, Untaught
from pi0rag_jax.errors import Pi0RagError


class Policy:
  connected = False

  def __init__(self):
    self.resets = 0

  def infer(self, obs):
    return {"actions": [obs["x"]]}

  def reset(self):
    self.resets += 1


def test_a_policy_that_learns_nothing():
  policy = Policy()
  untaught = Untaught(policy)
  assert untaught.begin("a") == "a" and untaught.begin() != untaught.begin() and policy.resets == 3
  assert untaught.infer({"x": 3}) == {"actions": [3]} and not untaught.connected
  assert untaught.end(True) == {"records": []}
  with pytest.raises(Pi0RagError, match="taught nothing"):
    untaught.undo("a")


class Server:
  """Writes down what its sessions hear."""

  def __init__(self):
    self.sessions = []

  def session(self):
    heard = []
    self.sessions.append(heard)

    class Session:
      def infer(self, message):
        heard.append(message)
        return {"actions": [0], "episode": {"records": [1]}}

    return Session()


def test_one_that_learns_here_says_what_it_would_over_the_wire():
  server = Server()
  taught = TaughtHere(server)
  taught.begin("a", task="pick", robot="arm")
  taught.infer({"x": 1})
  taught.did([[1.0, 2.0]], by="human")
  assert taught.end(True) == {"records": [1]}
  first, last = server.sessions[-1]
  assert first == {"x": 1, "episode": {"id": "a", "task": "pick", "robot": "arm", "decision": 0}}
  assert last["episode"] | {"done": 0} == {"id": "a", "task": "pick", "robot": "arm", "by": "human", "done": 0,
                                         "end": {"success": True, "failure_kind": "", "note": ""}, "decision": 1}
  taught.begin()
  assert len(server.sessions) == 3, "what a policy remembers of an episode is forgotten with it"
