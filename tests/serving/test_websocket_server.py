"""The protocol over a real socket: what was recorded of openpi's server, and that nothing ends ours."""

import base64
import threading

import numpy as np
import pytest
import websockets
from websockets.sync.client import connect as open_websocket

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.serving import messages
from pi0rag_jax.serving.websocket_server import WebsocketPolicyServer

from .conftest import HOST, get, running

METADATA = {"reset_pose": [0, 1.5]}


class Echo:
  """Answers with the observation's state; fails where asked to, waits where given something to wait for."""

  def infer(self, observation):
    if "fail" in observation:
      raise ValueError(observation["fail"])
    if "mistake" in observation:
      raise Pi0RagError("state has 3 numbers, the robot has 8")
    return {"actions": np.atleast_2d(observation["state"]), "policy_timing": {"infer_ms": 1.0}}


@pytest.fixture
def server():
  with running(WebsocketPolicyServer(Echo(), HOST, metadata=METADATA)) as started:
    yield started


@pytest.fixture
def opened(server):
  with open_websocket(f"ws://{HOST}:{server.port}/any/path", compression=None, max_size=None) as websocket:
    assert websocket.recv() == messages.pack(METADATA)
    yield websocket


def test_metadata_comes_first(server, recorded):
  with open_websocket(f"ws://{HOST}:{server.port}") as websocket:
    assert websocket.recv() == base64.b64decode(recorded["websocket"]["first_frame"]["b64"])


def test_answers_have_the_recorded_entries(opened, recorded):
  for wanted in recorded["websocket"]["responses_keys"]:
    opened.send(messages.pack({"state": np.zeros(3)}))
    found = messages.unpack(opened.recv())
    assert found.keys() == wanted.keys() and isinstance(found["actions"], np.ndarray)
    for key in ("policy_timing", "server_timing"):
      assert sorted(found[key]) == wanted[key]
      assert all(isinstance(ms, float) and ms > 0 for ms in found[key].values())


@pytest.mark.parametrize(("request_", "last_line"), [
  (messages.pack({"fail": "kaboom"}), None),
  ("text", None),
  (messages.pack({"mistake": 1}), "pi0rag_jax.errors.Pi0RagError: state has 3 numbers, the robot has 8"),
  (messages.pack([1]), "pi0rag_jax.errors.Pi0RagError: a request is a map, the observation; got a list"),
  (messages.pack({"state": np.zeros(3)})[:-1], "no whole msgpack message"),
])
def test_errors_are_told_and_close_the_connection_only(opened, server, recorded, request_, last_line):
  facts = recorded["websocket"]
  opened.send(request_)
  frame = opened.recv()
  assert isinstance(frame, str) and frame.splitlines()[0] == facts["error_frame"]["first_line"]
  if last_line is None:  # openpi's own; text is a TypeError there and a user's mistake here
    last_line = facts["text_request" if request_ == "text" else "error_frame"]["last_line"].removeprefix("TypeError: ")
  assert last_line in frame.splitlines()[-1]
  with pytest.raises(websockets.ConnectionClosed) as closed:
    opened.recv()
  assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (facts["close"]["code"], facts["close"]["reason"])
  with open_websocket(f"ws://{HOST}:{server.port}") as another:
    another.recv()
    another.send(messages.pack({"state": np.ones(3)}))
    assert sorted(messages.unpack(another.recv())) == facts["server_survives_error"]


def test_a_client_that_leaves_disturbs_nobody(opened, server):
  with open_websocket(f"ws://{HOST}:{server.port}") as leaving:
    leaving.send(messages.pack({"state": np.zeros(3)}))
  opened.send(messages.pack({"state": np.zeros(3)}))
  assert messages.unpack(opened.recv())["actions"].shape == (1, 3)


def test_health_is_answered(server, recorded):
  wanted = recorded["websocket"]["healthz"]
  answer, body = get(server, "/healthz")
  assert (answer.status, answer.reason, body) == (wanted["status"], wanted["reason"], wanted["body"])
  assert answer.getheader("content-type") == wanted["headers"]["content-type"]
  other = recorded["websocket"]["plain_http_other_path"]
  answer, _ = get(server, "/other")
  assert (answer.status, answer.reason) == (other["status"], other["reason"])


def test_pings_and_health_are_answered_during_an_inference():
  began, finish = threading.Event(), threading.Event()

  class Slow:
    def infer(self, observation):
      began.set()
      assert finish.wait(10)
      return {"actions": np.zeros((1, 1))}

  with running(WebsocketPolicyServer(Slow(), HOST)) as server, \
       open_websocket(f"ws://{HOST}:{server.port}") as websocket:
    websocket.recv()
    websocket.send(messages.pack({}))
    assert began.wait(10)
    assert websocket.ping().wait(10)
    assert get(server, "/healthz")[0].status == 200
    finish.set()
    assert "actions" in messages.unpack(websocket.recv())


def test_large_messages_pass(opened):
  state = np.random.default_rng(0).normal(size=400_000)
  opened.send(messages.pack({"state": state}))
  np.testing.assert_array_equal(messages.unpack(opened.recv())["actions"][0], state)


def test_a_port_that_is_taken_is_refused(server):
  with pytest.raises(Pi0RagError, match=f"cannot listen at {HOST}:{server.port}: Address already in use"):
    WebsocketPolicyServer(Echo(), HOST, server.port)
  with pytest.raises(Pi0RagError, match=r"cannot listen at nowhere\.invalid:0"):
    WebsocketPolicyServer(Echo(), "nowhere.invalid")
