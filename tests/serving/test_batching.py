"""Clients that ask within a window are decided for at once, in the order in which they asked."""

import concurrent.futures
import contextlib
import threading
import time

import numpy as np
import pytest
from websockets.sync.client import connect as open_websocket

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.serving import batching, messages
from pi0rag_jax.serving.websocket_server import WebsocketPolicyServer

from .conftest import HOST, PROMPT, running


class Counting:
  """A policy of which the test sees who was decided for together."""

  def __init__(self):
    self.batches, self.hold = [], threading.Event()

  def session(self):
    return self

  def talk(self, observation):
    if "early" in observation:
      return {"actions": np.zeros((1, 1))}
    answer = yield self, observation
    return {"actions": np.full((1, 1), answer)}

  def answers(self, asks):
    self.hold.wait(10)
    asked = [float(observation["x"]) for _, observation in asks]
    self.batches.append(asked)
    return [Pi0RagError("it is odd") if x == 13 else 2 * x for x in asked]


@pytest.fixture
def policy(monkeypatch):
  counting = Counting()
  monkeypatch.setattr(batching.together, "answers", counting.answers)
  return counting


def ask(websocket, x):
  websocket.send(messages.pack({"x": x}))
  answer = websocket.recv()
  return answer if isinstance(answer, str) else float(messages.unpack(answer)["actions"][0, 0])


def connected(opened, server):
  websocket = opened.enter_context(open_websocket(f"ws://{HOST}:{server.port}"))
  websocket.recv()
  return websocket


def test_who_asks_within_a_window_is_decided_for_at_once(policy):
  policy.hold.set()
  with contextlib.ExitStack() as opened, concurrent.futures.ThreadPoolExecutor(4) as threads:
    server = opened.enter_context(running(WebsocketPolicyServer(policy, HOST, admission=PROMPT, window_s=0.2)))
    clients = [connected(opened, server) for _ in range(4)]
    found = list(threads.map(ask, clients, [1, 2, 13, 4]))
    assert found[0] == 2 and found[1] == 4 and found[3] == 8 and "odd" in found[2]
    assert [sorted(batch) for batch in policy.batches] == [[1, 2, 4, 13]]
    assert ask(clients[0], 5) == 10 and policy.batches[1:] == [[5]]
    clients[1].send(messages.pack({"early": True}))
    assert messages.unpack(clients[1].recv())["actions"].shape == (1, 1) and len(policy.batches) == 2


def test_at_most_so_many_come_first_who_asked_first_and_who_went_is_left_out(policy, monkeypatch):
  monkeypatch.setattr(batching, "MOST", 2)
  with contextlib.ExitStack() as opened, concurrent.futures.ThreadPoolExecutor(4) as threads:
    server = opened.enter_context(running(WebsocketPolicyServer(policy, HOST, admission=PROMPT, window_s=0.01)))
    clients = [connected(opened, server) for _ in range(5)]
    waiting = [threads.submit(ask, clients[0], 0)]
    time.sleep(0.1)  # it is being decided for, held up by the test
    clients[4].send(messages.pack({"x": 9}))
    clients[4].close()
    for x in (1, 2, 3):
      waiting.append(threads.submit(ask, clients[x], x))
      time.sleep(0.05)
    policy.hold.set()
    assert [future.result(10) for future in waiting] == [0, 2, 4, 6]
    assert policy.batches[0] == [0] and [x for batch in policy.batches for x in batch] == [0, 1, 2, 3]
    assert max(map(len, policy.batches)) == 2
