"""The command: what it refuses, and a stand-in that is run, taught and recorded."""

import json
import threading
import time
import types

import numpy as np
import pytest

from pi0rag_jax.console.site import beside
from pi0rag_jax.control import running
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.robots import run
from pi0rag_jax.robots.limits import Limits
from pi0rag_jax.serving.websocket_server import WebsocketPolicyServer

FLAGS = {
  "robot": "panda", "options": "", "limits": "", "policy": "panda_small", "checkpoint": None, "server": "",
  "token": None, "memory": None, "learn": False, "keep_episodes": None, "prompt": "", "task": "",
  "condition": "nominal", "hz": None, "replan": "own", "real_time": False, "takeover": [], "gamepad_device": "",
  "auto": False, "pause_s": 0.0, "episodes": None, "seconds": None, "seed": 200_000, "record": None,
  "stale_ms": 90.0,
  "answer_ms": None, "give_up_s": 10.0, "report": None, "key_name": "", "start": None, "denoising_steps": None,
  "weights": None, "default_prompt": None, "name": "", "teacher": ""}


def asked(**changes):
  return types.SimpleNamespace(**FLAGS | changes)


@pytest.mark.parametrize(("changes", "words"), [
  ({"robot": "r2d2"}, "unknown robot 'r2d2'"), ({"policy": ""}, "give either --policy"),
  ({"server": "ws://x:1"}, "give either --policy"), ({"learn": True}, "--learn needs a --memory"),
  ({"server": "ws://x:1", "policy": "", "memory": "m"}, "the server has the memory"),
  ({"takeover": ["mind"]}, "unknown way to take over 'mind'"), ({"task": "juggling"}, "unknown task 'juggling'"),
  ({"options": "{"}, "neither JSON nor a file of it"), ({"options": "[1]x"}, "neither JSON nor a file of it"),
  ({"limits": '{"force": [1]}'}, "unknown limit 'force'"), ({"limits": '{"low": 3}'}, "low is 3; allowed: a list"),
  ({"policy": "metaworld_small"}, "is for the robot 'metaworld'")])
def test_what_cannot_be_is_told_before_anything_moves(changes, words):
  with pytest.raises(Pi0RagError, match=words):
    running.run(asked(**changes))


def test_limits_may_leave_entries_out():
  found = running.limits_of({"low": [0.1, None], "measured": [2, None]}, Limits(speed=(1.0, 1.0)))
  assert found == Limits(low=(0.1, -float("inf")), measured=(2, -1), speed=(1.0, 1.0))


def test_a_mistake_is_one_line_and_status_2(monkeypatch, capsys):
  monkeypatch.setattr(run.flags, "FLAGS", asked(robot="r2d2"))
  with pytest.raises(SystemExit) as ended:
    run.main([])
  told = capsys.readouterr()
  assert ended.value.code == 2 and told.err.count("\n") == 1 and "unknown robot 'r2d2'" in told.err and not told.out


def test_a_stand_in_is_run_taught_and_recorded(tiny_policy_dir, tmp_path, capsys):
  figures = running.run(asked(
    policy=str(tiny_policy_dir), memory=str(tmp_path / "memory"), learn=True, name="left arm", hz=100.0,
    record=str(tmp_path / "data"), seconds=0.2, stale_ms=5000.0, episodes=2,
    report=str(tmp_path / "report.json"), replan="adaptive",
    limits='{"low": [0.3, -0.3, 0.1, null, null], "measured": [0, 1, 2, null, null]}'))
  assert (figures["episodes"], figures["executed"], figures["holds"]) == (2, 40, 0) and figures["inferences"] >= 2
  assert json.loads((tmp_path / "report.json").read_text())["told"][0]["outcome"] == "failure"
  assert "episode 2 (seed 200001): failure after 20 ticks (policy 20)" in capsys.readouterr().out
  assert [len(data) for _, data in open_dataset(tmp_path / "data").iterate()] == [20, 20]
  with Memory.load(tmp_path / "memory") as memory:
    assert memory.episodes == 2
    assert {record.provenance["robot"] for _, record in memory.records()} <= {"left arm"}


class Server:
  """A policy of zeros behind a real socket."""

  def session(self):
    return self

  def infer(self, observation):
    return {"actions": np.zeros((8, 5)), "seen": sorted(observation)}


def test_a_stand_in_is_run_by_a_server_until_that_is_gone(tmp_path, capsys):
  told = {"action_horizon": 8, "execute_steps": 4, "control_hz": 100.0, "tasks": ["insertion"]}
  server = WebsocketPolicyServer(Server(), "127.0.0.1", metadata=told)
  report, figures = tmp_path / "report.json", {}
  with beside(server.run):
    given = asked(server=f"ws://127.0.0.1:{server.port}", policy="", stale_ms=5000.0, give_up_s=0.1,
                  report=str(report), record=str(tmp_path / "data"))
    running_ = threading.Thread(target=lambda: figures.update(running.run(given)), daemon=True)
    running_.start()
    while "panda at 100 Hz: insertion" not in capsys.readouterr().out:
      time.sleep(0.01)
    time.sleep(0.3)
  running_.join(30)
  (one,) = figures["told"]
  assert (one["outcome"], one["faults"][-1]) == ("fault", "the policy server is gone") and one["ticks"] > 4
  ((_, kept),) = open_dataset(tmp_path / "data").iterate()
  assert len(kept) == one["ticks"], "nothing is lost"
