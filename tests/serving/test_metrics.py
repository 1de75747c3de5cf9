"""What Prometheus is told: counted once each, by its own parser, and only to those who know the token."""

import types

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.serving import client
from pi0rag_jax.serving.admission import Admission
from pi0rag_jax.serving.metrics import Metrics
from pi0rag_jax.serving.websocket_server import WebsocketPolicyServer

from .conftest import HOST, Alone, get, running

TOKEN = "secret"
ADMISSION = Admission(token=TOKEN, failed_s=0.0)


class Policy(Alone):
  """Answers as an agent with a memory does, and as a session that learns."""

  def infer(self, observation):
    if "fail" in observation:
      raise Pi0RagError(observation["fail"])
    if "end" in observation:
      return {"episode": {"id": "a", "records": [1, 2], **observation["end"]}}
    return {"actions": np.zeros((2, 5)), "neighbours_used": observation["used"],
            "policy_timing": {"infer_ms": 9.0, "policy_ms": 3.0, "search_ms": 30.0},
            **({"episode": {"asks": observation["asks"]}} if "asks" in observation else {})}


@pytest.fixture
def server():
  memory = types.SimpleNamespace(counts=lambda: {"correction": 7, "anchor": 2, "failure": 0}, episodes=5, successes=3,
                                 following=lambda: {"version": 12, "connected": True, "lag_ms": 2.0})
  agent = types.SimpleNamespace(memory=memory, deadline_misses=4)
  counted = Metrics(agent, ADMISSION)
  with running(WebsocketPolicyServer(Policy(), HOST, admission=ADMISSION, metrics=counted)) as started:
    yield started


def scraped(server):
  """Returns {(name, labels): value} of what a scraper is told."""
  answer, text = get(server, "/metrics", {"Authorization": f"Api-Key {TOKEN}"})
  assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/plain; version=")
  return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value
          for family in text_string_to_metric_families(text) for sample in family.samples}


def test_each_answer_is_counted_once(server):
  robot = client.WebsocketClientPolicy(HOST, server.port, TOKEN)
  for observation in ({"used": 3}, {"used": 0, "asks": True}, {"used": 40, "asks": False}, {"end": {}},
                      {"end": {"again": True}}):
    robot.infer(observation)
  with pytest.raises(client.ServerError):
    robot.infer({"fail": "no such camera"})
  told = scraped(server)
  names = {"decisions_total": 3, "asks_total": 1, "episodes_total": 1, "failed_requests_total": 1,
           "missed_deadlines_total": 4, "neighbours_used_sum": 43, "neighbours_used_count": 3, "memory_episodes": 5,
           "memory_successes": 3, "memory_version": 12, "memory_connected": 1, "memory_lag_seconds": 0.002}
  assert {name: told[f"pi0rag_{name}", ()] for name in names} == names
  assert told["pi0rag_neighbours_used_bucket", (("le", "0.0"),)] == 1
  assert told["pi0rag_memory_records", (("kind", "correction"),)] == 7
  seconds = lambda stage, le: told["pi0rag_decision_seconds_bucket", (("le", le), ("stage", stage))]  # noqa: E731
  assert (seconds("policy", "0.0025"), seconds("policy", "0.005"), seconds("search", "0.05")) == (0, 3, 3)
  assert told["pi0rag_decision_seconds_count", (("stage", "server"),)] == 3
  assert ("pi0rag_decision_seconds_count", (("stage", "infer"),)) not in told
  robot.close()


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Api-Key wrong"}, {"Authorization": f"Api-Key {TOKEN}",
                                                                              "Origin": "http://elsewhere"}])
def test_strangers_are_told_nothing(server, headers):
  answer, text = get(server, "/metrics", headers)
  assert answer.status in (401, 403) and "pi0rag" not in text
