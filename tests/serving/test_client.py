"""The client: openpi's interface, patience, and errors that say what to do."""

import threading
import time

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.serving.admission import Admission
from pi0rag_jax.serving.client import ServerError, WebsocketClientPolicy
from pi0rag_jax.serving.websocket_server import WebsocketPolicyServer

from .conftest import HOST, PROMPT, Alone, running


class Halving(Alone):
  """Answers with half the state."""

  def infer(self, observation):
    return {"actions": observation["state"][None] / 2}


def test_a_policy_is_as_if_it_were_here(connect):
  policy = connect(Halving(), {"robot": "x"})
  assert policy.get_server_metadata() == {"robot": "x"}
  answer = policy.infer({"state": np.arange(3.0)})
  np.testing.assert_array_equal(answer["actions"], [[0, 0.5, 1]])
  assert answer["server_timing"]["infer_ms"] > 0
  policy.reset()


def test_a_failure_there_is_an_error_here(connect):
  policy = connect(Halving())
  # As from openpi's client.
  with pytest.raises(RuntimeError, match=r"Error in inference server:\nthe inference failed with a KeyError") as failed:
    policy.infer({})
  assert isinstance(failed.value, ServerError)
  with pytest.raises(Pi0RagError, match=r"is closed \(.*1011.*\): make a new WebsocketClientPolicy"):
    policy.infer({"state": np.zeros(1)})


def test_what_cannot_be_sent_leaves_the_connection_usable(connect):
  policy = connect(Halving())
  with pytest.raises(Pi0RagError, match=r"a builtins\.object cannot be sent"):
    policy.infer({"state": object()})
  assert policy.infer({"state": np.ones(1)})["actions"] == 0.5
  policy.close()
  policy.close()
  with pytest.raises(Pi0RagError, match="is closed"):
    policy.infer({"state": np.ones(1)})


def test_a_server_that_is_gone_is_missed_without_asking():
  server = WebsocketPolicyServer(Halving(), HOST, admission=PROMPT)
  with running(server):
    policy = WebsocketClientPolicy(HOST, server.port)
    assert policy.connected
  for _ in range(200):
    if not policy.connected:
      break
    time.sleep(0.01)
  assert not policy.connected
  policy.close()


def test_it_waits_until_the_server_is_up(caplog):
  server = WebsocketPolicyServer(Halving(), HOST, admission=PROMPT)  # the port is reserved, nobody listens
  clients = []
  thread = threading.Thread(target=lambda: clients.append(WebsocketClientPolicy(HOST, server.port)))
  thread.start()
  thread.join(0.2)
  assert thread.is_alive()
  assert f"Still waiting for the policy server at ws://{HOST}:{server.port} (" in caplog.text
  with running(server):
    thread.join(10)
    assert clients[0].infer({"state": np.ones(1)})["actions"] == 0.5
    clients[0].close()


def test_the_key_is_sent_and_a_refusal_is_told():
  with running(WebsocketPolicyServer(Halving(), HOST, admission=Admission(token="sesame"))) as server:
    with pytest.raises(Pi0RagError, match=r"is no policy server, or refuses this client: .*401"):
      WebsocketClientPolicy(HOST, server.port)
    WebsocketClientPolicy(f"ws://{HOST}:{server.port}/a/path", api_key="sesame").close()


@pytest.mark.parametrize(("host", "message"), [
  ("nowhere.invalid", "no policy server at ws://nowhere.invalid:1: "), ("ws://", "ws://:1 is no policy server")])
def test_hosts_that_do_not_exist_are_not_waited_for(host, message):
  with pytest.raises(Pi0RagError, match=message):
    WebsocketClientPolicy(host, 1)
