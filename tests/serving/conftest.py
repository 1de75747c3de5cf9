"""What openpi's server and client were recorded to do (`recorded/`), and servers on a real socket."""

import asyncio
import contextlib
import http.client
import json
import pathlib
import threading

import numpy as np
import pytest

from pi0rag_jax.serving import client
from pi0rag_jax.serving.admission import Admission
from pi0rag_jax.serving.websocket_server import WebsocketPolicyServer

HOST = "127.0.0.1"
PROMPT = Admission(failed_s=0.0)  # who makes a mistake is told at once


class Alone:
  """A policy that remembers nothing: one for all clients."""

  def session(self):
    return self


def as_arrays(node):
  """Returns a recorded value with arrays and scalars in place of what stands for them."""
  if isinstance(node, list):
    return [as_arrays(value) for value in node]
  if not isinstance(node, dict):
    return node
  if "__nd__" in node:
    return np.array(node["__nd__"], node["dtype"]).reshape(node["shape"])
  return np.dtype(node["dtype"]).type(node["__np__"]) if "__np__" in node else {
    key: as_arrays(value) for key, value in node.items()}


RECORDED = json.loads((pathlib.Path(__file__).parent / "recorded" / "serving.json").read_text())


@pytest.fixture(scope="session")
def recorded():
  return RECORDED


@pytest.fixture(autouse=True)
def impatient_clients(monkeypatch):
  monkeypatch.setattr(client, "RETRY_S", 0.02)


def get(server, path):
  """Returns a server's answer to a plain HTTP request, and its body."""
  plain = http.client.HTTPConnection(HOST, server.port, timeout=10)
  plain.request("GET", path)
  answer = plain.getresponse()
  return answer, answer.read().decode()


@contextlib.contextmanager
def running(server):
  """Runs a server on a thread for the length of the block."""
  loop = asyncio.new_event_loop()
  ready = threading.Event()
  task = loop.create_task(server.run(ready.set))

  def run():
    with contextlib.suppress(asyncio.CancelledError):
      loop.run_until_complete(task)

  thread = threading.Thread(target=run)
  thread.start()
  try:
    assert ready.wait(10), "the server does not listen"
    yield server
  finally:
    loop.call_soon_threadsafe(task.cancel)
    thread.join()
    loop.close()


@pytest.fixture
def connect():
  """Returns a function: a client of a policy, served until the test ends; `connect.another()` is one more."""
  with contextlib.ExitStack() as opened:
    def start(policy, metadata=None):
      server = opened.enter_context(
        running(WebsocketPolicyServer(policy, HOST, metadata=metadata, admission=PROMPT)))

      def another():
        served = client.WebsocketClientPolicy(HOST, server.port)
        opened.callback(served.close)
        return served

      start.another = another
      return another()

    yield start
