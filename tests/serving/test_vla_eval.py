"""vla-eval's own client gets the policy's actions, one a step, and a plan when the last one is used up."""

import threading

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy import directory
from pi0rag_jax.serving import vla_eval
from pi0rag_jax.steering.agent import Agent

IMAGES = {"agentview": np.full((32, 32, 3), 90, np.uint8), "wrist": np.full((32, 32, 3), 20, np.uint8)}


def test_benchmarks_entries_become_the_robots():
  to_robot = vla_eval.Translator("libero")
  found = to_robot({"images": IMAGES, "states": np.arange(8.0), "task_description": "stack"})
  assert found["prompt"] == "stack" and found["observation/state"].tolist() == list(range(8))
  assert found["observation/image"][0, 0, 0] == 90 and found["observation/wrist_image"][0, 0, 0] == 20
  with pytest.raises(Pi0RagError, match="a state of 8 numbers"):
    to_robot({"images": IMAGES})
  assert "prompt" not in to_robot({"images": IMAGES, "state": np.zeros(8)})


def test_its_client_is_answered(tiny_policy_dir):
  pytest.importorskip("vla_eval", reason="needs the package vla-eval")
  import anyio
  from vla_eval.connection import Connection
  from vla_eval.model_servers.serve import serve_async

  agent = Agent(directory.load(tiny_policy_dir))
  steps = agent.policy.spec.execute_steps
  server, ports, ready, stop = vla_eval.make_server(agent), [], threading.Event(), threading.Event()

  async def serve():
    async with anyio.create_task_group() as group:
      ports.append(await group.start(serve_async, server, "127.0.0.1", 0))
      ready.set()
      await anyio.to_thread.run_sync(stop.wait)
      group.cancel_scope.cancel()

  picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
  images = {"base_0_rgb": picture, "left_wrist_0_rgb": picture}
  observation = {"images": images, "states": np.zeros(10), "task_description": "pick up the red cube"}

  async def ask():
    connection = Connection(f"ws://127.0.0.1:{ports[0]}")
    await connection.connect()
    answers = []
    for _ in range(2):
      await connection.start_episode({"task": {"name": "pick"}})
      answers.append([(await connection.act(observation))["actions"] for _ in range(steps + 1)])
      await connection.end_episode({"success": True})
    await connection.close()
    return answers

  thread = threading.Thread(target=anyio.run, args=(serve,))
  thread.start()
  try:
    assert ready.wait(60)
    first, second = anyio.run(ask)
  finally:
    stop.set()
    thread.join()
  wanted = agent.session().infer({"image": images, "state": np.zeros(10), "prompt": "pick up the red cube"})["actions"]
  np.testing.assert_array_equal(np.stack(first[:steps]), np.float32(wanted[:steps]))
  np.testing.assert_array_equal(first[steps], np.float32(wanted[0]))  # planned anew
  np.testing.assert_array_equal(first, second)
  assert not server._sessions
