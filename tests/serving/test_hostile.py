"""A server among strangers: 200 of them at once, and messages broken in every way."""

import os
import pathlib
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy import directory
from pi0rag_jax.serving import messages
from pi0rag_jax.serving.client import ServerError, WebsocketClientPolicy
from pi0rag_jax.steering.agent import Agent

from .conftest import Alone

STRANGERS = pathlib.Path(__file__).with_name("strangers.py")
HONEST, REQUESTS = 3, 150


def rss_mb(pid):
  """Returns (memory now, the most so far) of a process, MB."""
  status = pathlib.Path(f"/proc/{pid}/status").read_text()
  return tuple(int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024 for name in ("VmRSS", "VmHWM"))


def latencies_ms(clients, observation):
  """Returns how long each request of clients took that ask at once, with pauses."""
  found = []

  def ask(client):
    for _ in range(REQUESTS):
      began = time.perf_counter()
      client.infer(observation)
      found.append((time.perf_counter() - began) * 1000)
      time.sleep(0.02)

  threads = [threading.Thread(target=ask, args=[client]) for client in clients]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(found) == len(clients) * REQUESTS
  return np.array(found)


@pytest.mark.slow
def test_200_strangers_hardly_disturb_others(observations, tmp_path):
  command = [sys.executable, "-m", "pi0rag_jax.serving.server", "--policy=panda_small", "--port=0"]
  with open(tmp_path / "log", "w+") as log, \
       subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server:
    try:
      port = int([server.stdout.readline() for _ in range(3)][2].split()[2].rsplit(":", 1)[1])
      clients = [WebsocketClientPolicy("127.0.0.1", port) for _ in range(HONEST)]
      latencies_ms(clients, observations[0])
      quiet, before = latencies_ms(clients, observations[0]), rss_mb(server.pid)
      with subprocess.Popen(["nice", sys.executable, STRANGERS, str(port), "30"]) as strangers:
        time.sleep(3.0)
        disturbed = latencies_ms(clients, observations[0])
        assert strangers.poll() is None, "they left too early"
      after = rss_mb(server.pid)
      WebsocketClientPolicy("127.0.0.1", port).infer(observations[0])
      quiet = max(quiet, latencies_ms(clients, observations[0]), key=lambda part: np.percentile(part, 99))
      log.seek(0)
      text = log.read()
    finally:
      ended = server.poll()
      server.kill()
      assert ended is None, f"the server ended with {ended}: {(tmp_path / 'log').read_text()[-2000:]}"
  percentiles = [np.percentile(part, [50, 99]).round(1).tolist() for part in (quiet, disturbed)]
  print(f"p50, p99 (ms): quiet {percentiles[0]}, among strangers {percentiles[1]}; memory (MB): now, most: "
        f"{before} then {after}; log {len(text)} bytes")
  assert after[1] - before[1] <= 64 and after[0] - before[0] <= 64
  assert "Traceback" not in text and len(text) < 100_000, text[-2000:]
  assert percentiles[1][1] <= 3 * percentiles[0][1]


def mutated(rng, packed):
  """Returns a message with some bytes changed, left out, doubled or put in, or numbers in it made absurd."""
  data = bytearray(packed)
  for _ in range(rng.integers(1, 6)):
    # Most bytes are pictures': half of the changes hit what is not.
    last = len(data) if rng.random() < 0.3 else min(len(data), 400)
    at, kind = int(rng.integers(last)), rng.integers(6)
    if kind == 0:
      data[at] = rng.integers(256)
    elif kind == 1:
      del data[at : at + int(rng.integers(1, 50))]
    elif kind == 2:
      data[at:at] = rng.bytes(int(rng.integers(1, 20)))
    elif kind == 3:
      data[at:at] = data[at : at + int(rng.integers(1, 100))]
    elif kind == 4:
      data[at] ^= 1 << int(rng.integers(8))
    else:
      data[at : at + 8] = rng.choice([b"\xff" * 8, bytes(8), b"\x7f\xff" * 4, b"\x00\x00\x00\x00\x00\x00\xf0\x7f"])
    if not data:
      return b"\xc0"
  return bytes(data)


class Told(Alone):
  """An agent that lets nothing through but an answer or a user's mistake."""

  def __init__(self, agent):
    self._agent, self.bugs = agent, []

  def infer(self, observation):
    try:
      return self._agent.infer(observation)
    except Pi0RagError:
      raise
    except Exception as error:
      self.bugs.append(repr(error))
      raise


@pytest.fixture(scope="module")
def small():
  return directory.load("panda_small")


@pytest.mark.parametrize("mutations", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_broken_messages_are_answered_in_one_line(small, observations, connect, mutations):
  rng, told = np.random.default_rng(0), Told(Agent(small))
  packed = [messages.pack(observation) for observation in observations]
  client, before = connect(told), None
  for number in range(mutations):
    if number == mutations // 4:
      before = rss_mb(os.getpid())[0]
    began = time.perf_counter()
    try:
      client._connection.send(mutated(rng, packed[number % 2]))
      answer = client._receive()
      assert np.isfinite(answer["actions"]).all()
    except ServerError as error:
      line = str(error).removeprefix("Error in inference server:\n")
      assert "\n" not in line and len(line) < 320 and "the inference failed" not in line, line
      client.close()
      client = connect.another()
    assert time.perf_counter() - began < 10
  assert not told.bugs
  assert rss_mb(os.getpid())[0] - before < 64
  assert client.infer(observations[0])["actions"].shape == (16, 5)
