"""The protocol over a real socket: what was recorded of openpi's server, and that nothing ends ours."""

import base64
import contextlib
import dataclasses
import logging
import socket
import threading

import numpy as np
import pytest
import websockets
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as open_websocket

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.serving import admission, messages
from pi0rag_jax.serving.websocket_server import CLOSE_REASON, WebsocketPolicyServer

from .conftest import HOST, PROMPT, Alone, get, running

METADATA = {"reset_pose": [0, 1.5]}


class Echo(Alone):
  """Answers with the observation's state; fails where asked to."""

  def infer(self, observation):
    if "fail" in observation:
      raise ValueError(observation["fail"])
    if "mistake" in observation:
      raise Pi0RagError(observation["mistake"])
    return {"actions": np.atleast_2d(observation["state"]), "policy_timing": {"infer_ms": 1.0}}


@pytest.fixture
def server():
  with running(WebsocketPolicyServer(Echo(), HOST, metadata=METADATA, admission=PROMPT)) as started:
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


@pytest.mark.parametrize(("request_", "line"), [
  (messages.pack({"fail": "kaboom at /home/me"}), "the inference failed with a ValueError: the server's log says more"),
  ("text", "a bytes-like object is required, not 'str': a message is msgpack, sent as a binary frame"),
  (messages.pack({"mistake": "state has 3 numbers, the robot has 8"}), "state has 3 numbers, the robot has 8"),
  (messages.pack({"mistake": "no\n'" + 400 * "x" + "' in /home/me/x.py"}), "no\\n'" + 295 * "x" + "..."),
  (messages.pack([1]), "a request is a map, the observation; got a list"),
  (messages.pack({"state": np.zeros(3)})[:-1], "73 bytes are no whole msgpack message: incomplete input"),
])
def test_errors_are_told_in_one_line_and_close_the_connection_only(opened, server, recorded, caplog, request_, line):
  facts = recorded["websocket"]
  opened.send(request_)
  assert opened.recv() == line
  with pytest.raises(websockets.ConnectionClosed) as closed:
    opened.recv()
  assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (facts["close"]["code"], CLOSE_REASON)
  with open_websocket(f"ws://{HOST}:{server.port}") as another:
    another.recv()
    another.send(messages.pack({"state": np.ones(3)}))
    assert sorted(messages.unpack(another.recv())) == facts["server_survives_error"]
  assert all("\n" not in record.getMessage() and len(record.getMessage()) < 400 for record in caplog.records)


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

  class Slow(Alone):
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


@dataclasses.dataclass
class Counting:
  """Answers how often it was asked by this client."""

  asked: int = 0

  def session(self):
    return dataclasses.replace(self)

  def infer(self, observation):
    self.asked += 1
    return {"actions": np.full((1, 1), self.asked)}


def test_every_connection_is_a_session_of_its_own():
  def ask(websocket):
    websocket.send(messages.pack({}))
    return int(messages.unpack(websocket.recv())["actions"][0, 0])

  with running(WebsocketPolicyServer(Counting(), HOST)) as server:
    with open_websocket(f"ws://{HOST}:{server.port}") as one, open_websocket(f"ws://{HOST}:{server.port}") as other:
      one.recv()
      other.recv()
      assert [ask(one), ask(one), ask(other), ask(one)] == [1, 2, 1, 3]
    with open_websocket(f"ws://{HOST}:{server.port}") as again:
      again.recv()
      assert ask(again) == 1


@pytest.fixture
def serving():
  """Returns a function: a server of Echo with some admission, and a function that connects to it."""
  with contextlib.ExitStack() as opened:
    def start(**changes):
      admitting = dataclasses.replace(PROMPT, **changes)
      server = opened.enter_context(running(WebsocketPolicyServer(Echo(), HOST, admission=admitting)))

      def connect(**options):
        websocket = opened.enter_context(open_websocket(f"ws://{HOST}:{server.port}", max_size=None, **options))
        websocket.recv()
        return websocket

      return server, connect

    yield start


def ask(websocket):
  websocket.send(messages.pack({"state": np.zeros(3)}))
  return messages.unpack(websocket.recv())


@pytest.mark.parametrize(("token", "key", "status"), [
  ("sesame", "Api-Key sesame", None), ("sesame", "Api-Key sesam", 401), ("sesame", "Bearer sesame", 401),
  ("sesame", "Api-Key s\u00e9same", 401), ("sesame", None, 401), (None, None, None), (None, "Api-Key x", None)])
def test_keys_are_checked_and_never_silently_ignored(serving, caplog, token, key, status):
  caplog.set_level(logging.INFO, "pi0rag_jax.serving")
  _, connect = serving(token=token)
  headers = {} if key is None else {"Authorization": key}
  if status is None:
    ask(connect(additional_headers=headers))
  else:
    with pytest.raises(InvalidStatus) as refused:
      connect(additional_headers=headers)
    assert refused.value.response.status_code == status
    assert b"Api-Key TOKEN" in refused.value.response.body
  assert ("which nobody checks" in caplog.text) == (token is None and key is not None)


@pytest.mark.parametrize(("origins", "origin", "status"), [
  ((), None, None), ((), "https://evil.example", 403), (("https://a.example",), "https://a.example", None),
  (("https://a.example",), "https://b.example", 403), (("*",), "null", None)])
def test_web_pages_are_refused_unless_they_are_allowed(serving, origins, origin, status):
  _, connect = serving(origins=origins)
  if status is None:
    ask(connect(origin=origin))
  else:
    with pytest.raises(InvalidStatus, match=str(status)):
      connect(origin=origin)


def test_messages_are_bounded(serving):
  _, connect = serving(message_bytes=1000)
  websocket = connect()
  websocket.send(messages.pack({"state": np.zeros(200)}))
  with pytest.raises(websockets.ConnectionClosed) as closed:
    websocket.recv()
  assert closed.value.rcvd.code == 1009
  ask(connect())


def test_connections_are_bounded(serving):
  server, connect = serving(connections=2)
  robots = [connect(), connect()]
  for robot in robots:
    ask(robot)
  with pytest.raises(InvalidStatus) as refused:
    connect()
  assert refused.value.response.status_code == 503 and b"all 2 places are taken" in refused.value.response.body
  assert get(server, "/healthz")[0].status == 200
  robots.pop().close()
  late = connect()
  # Who never asked anything makes room for another.
  ask(connect())
  with pytest.raises(websockets.ConnectionClosed):
    late.recv()
  ask(robots[0])


def test_who_asks_nothing_is_let_go(serving):
  _, connect = serving(idle_s=0.2)
  websocket = connect()
  ask(websocket)
  with pytest.raises(websockets.ConnectionClosed) as closed:
    websocket.recv(timeout=10)
  assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, "idle for 0.2 s")


def shake_hands(server):
  """Returns a plain socket after its handshake."""
  plain = socket.create_connection((HOST, server.port))
  plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n")
  assert b"101 Switching" in plain.recv(4096)
  return plain


def is_closed(plain):
  plain.settimeout(10)
  try:
    while plain.recv(1 << 16):
      pass
    return True
  except ConnectionResetError:
    return True
  except TimeoutError:
    return False


def test_unfinished_messages_give_way_to_a_robots(serving):
  server, connect = serving(message_bytes=1 << 20)
  robot = connect()
  slow = [shake_hands(server) for _ in range(5)]
  for plain in slow:
    plain.sendall(b"\x82\xff" + (1 << 20).to_bytes(8, "big") + bytes(4) + bytes(1 << 20)[:-1])
  for _ in range(3):
    robot.send(messages.pack({"state": np.zeros(100_000)}))
    assert messages.unpack(robot.recv())["actions"].size == 100_000
  assert is_closed(slow[0]) and is_closed(slow[1])
  for plain in slow:
    plain.close()


def test_who_does_not_read_is_let_go(serving):
  server, connect = serving()
  plain = shake_hands(server)
  ping = b"\x89\xfd" + bytes(4) + bytes(125)
  with pytest.raises(ConnectionError):  # the buffers of the kernel fill first
    for _ in range(10_000):
      plain.sendall(ping * 100)
  plain.close()
  ask(connect())


def test_frames_without_end_are_cut_off(serving):
  server, connect = serving()
  plain = shake_hands(server)
  plain.sendall(b"\x02\x80" + bytes(4))
  with pytest.raises(ConnectionError):
    for _ in range(10_000):
      plain.sendall((b"\x00\x80" + bytes(4)) * 1000)
  plain.close()
  ask(connect())


def test_used_up_descriptors_and_strangers_do_not_flood_the_log(caplog):
  log = admission.CalmLog(logging.getLogger("pi0rag_jax.serving"))
  for number in range(1000):
    log(logging.WARNING, "%s", f"no descriptor {number}\n" + 1000 * "x")
  assert len(caplog.records) == log.LINES and "\n" not in caplog.records[0].getMessage()


def test_a_port_that_is_taken_is_refused(server):
  with pytest.raises(Pi0RagError, match=f"cannot listen at {HOST}:{server.port}: Address already in use"):
    WebsocketPolicyServer(Echo(), HOST, server.port)
  with pytest.raises(Pi0RagError, match=r"cannot listen at nowhere\.invalid:0"):
    WebsocketPolicyServer(Echo(), "nowhere.invalid")
