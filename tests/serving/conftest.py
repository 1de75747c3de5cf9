"""What openpi's server and client were recorded to do (`recorded/`), and servers on a real socket."""

import asyncio
import contextlib
import http.client
import json
import pathlib
import threading

import numpy as np
import pytest

from pi0rag_jax.learning.kept import Keeper
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.policy import directory
from pi0rag_jax.serving import client
from pi0rag_jax.serving.admission import Admission
from pi0rag_jax.serving.episode_log import LOG_NAME, EpisodeLog
from pi0rag_jax.serving.session import Teachable
from pi0rag_jax.serving.websocket_server import WebsocketPolicyServer
from pi0rag_jax.steering.agent import Agent

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


def get(server, path, headers=None):
  """Returns a server's answer to a plain HTTP request, and its body."""
  plain = http.client.HTTPConnection(HOST, server.port, timeout=10)
  plain.request("GET", path, headers=headers or {})
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


@pytest.fixture(scope="session")
def policy(tiny_policy_dir):
  return directory.load(tiny_policy_dir)


@pytest.fixture(scope="session")
def taught_server(policy, observations, tmp_path_factory):
  folder = tmp_path_factory.mktemp("taught")
  with contextlib.ExitStack() as opened:
    memory = opened.enter_context(Memory.open(folder / "memory", **policy.memory_header()))
    agent = opened.enter_context(contextlib.closing(Agent(policy, memory)))
    log = opened.enter_context(contextlib.closing(EpisodeLog(folder / "memory" / LOG_NAME)))
    keeper = opened.enter_context(contextlib.closing(Keeper(folder / "kept", policy)))
    teachable = Teachable(agent, memory, log, keeper)
    live_through(teachable, observations, "a", {"success": False, "failure_kind": "drop"}, helped=True)
    live_through(teachable, observations, "b", {"success": True})
    live_through(teachable, observations, "c")
    yield teachable


@pytest.fixture
def taught(taught_server):
  """A server that was taught three episodes: 'a' failed although a person acted at its third moment, 'b' worked, 'c' is
  under way. What else a test teaches it is gone afterwards.
  """
  memory = taught_server._memory
  before = memory.of_episode("a") + memory.of_episode("b")
  yield taught_server
  memory.remove(identity for identity, _ in list(memory.records()) if identity not in before)


def live_through(teachable, observations, name, end=None, *, helped=False):
  """Lets a robot make four decisions, the third of which a person replaces where it is helped."""
  robot, entry = teachable.session(), {"id": name, "task": "pick", "robot": "r 1"}
  for number in range(4):
    came = {"by": "human", "done": np.full((4, 5), 0.01)} if helped and number == 3 else {}
    robot.infer({**observations[number % 2], "prompt": "move", "episode": {**entry, **came, "decision": number}})
  if end is not None:
    robot.infer({"episode": {**entry, "decision": 4, "end": end}})
    teachable.keeper._writing.submit(lambda: None).result()  # it is written
