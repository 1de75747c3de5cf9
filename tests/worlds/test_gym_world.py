"""Environments of gymnasium as worlds, here and behind a bridge to another interpreter."""

import os
import pathlib
import socket
import sys
import time

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds import bridge, gym_world, registry
from pi0rag_jax.worlds.batch import Advance, BatchEnv, Start
from pi0rag_jax.worlds.world import WorldConfig

HERE = str(pathlib.Path(__file__).parent)
WORLD = "tiny_gym/Reach-v0"
# "plain" takes the environment's own names; the bridge's other interpreter must not need jax, hence `observation`.
OPTIONS = {"robot": "plain", "prompt": "reach the point", "observation": {
  "image": {"top": "pixels.top"}, "state": "agent_pos"}}


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
  monkeypatch.syspath_prepend(HERE)
  monkeypatch.setenv("PYTHONPATH", HERE)


def make(**options):
  return registry.make_world(WorldConfig("Reach-v0", world=WORLD, options={**OPTIONS, **options}))


@pytest.mark.parametrize("options", [{}, {"python": sys.executable}], ids=["here", "bridged"])
def test_an_environment_runs_and_repeats(options):
  world, ends = make(**options), []
  for _ in range(2):
    world.begin(3)
    start = world.observe()
    goal = start["state"][3:]
    progress = world.advance(np.tile(np.clip(goal * 4, -1, 1), (2, 1)).astype(np.float32))
    assert progress.ticks == 2 and not progress.error
    ends.append(world.observe())
    while not progress.done:
      left = goal - world.observe()["state"][:3]
      progress = world.advance(np.clip(left * 10, -1, 1)[None].astype(np.float32))
    assert progress.success and progress.done
  np.testing.assert_array_equal(ends[0]["state"], ends[1]["state"])
  assert start["image"]["top"].dtype == np.uint8 and start["prompt"] == "reach the point"
  world.begin(4)
  assert (world.observe()["state"] != start["state"]).any()
  with pytest.raises(Pi0RagError, match=r"shape \(1, 2\)"):
    world.advance(np.zeros((1, 2)))
  world.close()


def test_time_is_limited():
  world = make(time_limit=3)
  world.begin(0)
  progress = world.advance(np.zeros((5, 3), np.float32))
  assert progress.ticks == 3 and progress.done and not progress.success


def test_the_robots_entries_are_found_by_name_or_in_order():
  seen = {"pixels": {"cam_high": np.zeros((4, 4, 3), np.uint8)}, "agent_pos": np.zeros(14), "goal": np.zeros(2)}
  assert gym_world.match(seen, "aloha") == {"images": {"cam_high": "pixels.cam_high"}, "state": "agent_pos"}
  seen = {"pixels": {"top": np.zeros((4, 4, 3), np.uint8), "side": np.zeros((4, 4, 3), np.uint8)},
          "agent_pos": np.zeros(8)}
  assert gym_world.match(seen, "libero") == {
    "observation/image": "pixels.top", "observation/wrist_image": "pixels.side", "observation/state": "agent_pos"}
  with pytest.raises(Pi0RagError, match=r"a state of 14 numbers.*agent_pos\[8\]"):
    gym_world.match(seen, "aloha")


@pytest.mark.parametrize(("world", "options", "message"), [
  ("panda", {"robot": "aloha"}, "unknown option of the world 'panda' 'robot'"),
  (WORLD, {}, "say what its observations and actions are"),
  (WORLD, {"robot": "plain", "promt": "x"}, "Did you mean 'prompt'"),
  ("tiny_gym/Rech-v0", {"robot": "plain"}, "gymnasium knows no environment"),
  ("no_such_gym/X-v0", {"robot": "plain"}, "pip install no-such-gym"),
  ("pandas", {}, "Did you mean 'panda'"),
])
def test_what_cannot_be_made_is_refused(world, options, message):
  with pytest.raises(Pi0RagError, match=message):
    registry.require(WorldConfig(world.rpartition("/")[2], world=world, options=options))


@pytest.mark.parametrize(("broken", "message"), [("raises", "the simulation diverged"), ("nan", "")])
@pytest.mark.parametrize("options", [{}, {"python": sys.executable}], ids=["here", "bridged"])
def test_a_broken_environment_costs_one_episode(options, broken, message):
  config = WorldConfig("Reach-v0", world=WORLD, options={**OPTIONS, **options, "kwargs": {"broken": broken}})
  with BatchEnv(config, slots=1, processes=0) as env:
    assert not env.run({0: Start(1)})[0].error
    moment = env.run({0: Advance(np.zeros((1, 3), np.float32))})[0]
    assert message in moment.error
    assert moment.error or np.isnan(moment.observation["state"]).any()  # which the episode's driver looks for
    assert not env.run({0: Start(1)})[0].error


def test_a_bridge_that_breaks_or_hangs_says_so():
  before = socket.getdefaulttimeout()
  socket.setdefaulttimeout(60.0)  # as rospy does
  try:
    world = make(python=sys.executable)
  finally:
    socket.setdefaulttimeout(before)
  time.sleep(0.2)  # the other end waits for its next call
  world.begin(0)
  world._call.process.kill()
  with pytest.raises(Pi0RagError, match="ended at 'observe'"):
    world.observe()
  world.close()
  assert world._call.process.poll() is not None
  with pytest.raises(Pi0RagError, match=r"can run in '/no/such/python'"):
    make(python="/no/such/python")


def test_what_another_interpreter_lacks_is_said_before_anything_runs():
  options = {**OPTIONS, "python": sys.executable}
  registry.require(WorldConfig("Reach-v0", world=WORLD, options=options))
  with pytest.raises(Pi0RagError, match=r"^gymnasium knows no environment 'tiny_gym/Rech-v0'"):
    registry.require(WorldConfig("Rech-v0", world="tiny_gym/Rech-v0", options=options))


def test_closing_leaves_no_process():
  world = make(python=sys.executable)
  world.close()
  with pytest.raises(ProcessLookupError):
    os.kill(world._call.process.pid, 0)


def test_arrays_cross_a_bridge_as_they_are():
  ours, theirs = socket.socketpair()
  value = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1], "b": [np.float64(1.5), None, "x", True, 3],
           "c": {1: np.array("text"), 2: np.zeros((0, 4), np.uint8)}}
  bridge.send(ours, value)
  found = bridge.receive(theirs)
  np.testing.assert_array_equal(found["a"], value["a"])
  assert found["a"].dtype == np.float32 and found["b"][0] == 1.5 and found["b"][1:] == [None, "x", True, 3]
  assert found["c"][1] == "text" and found["c"][2].shape == (0, 4)
  for wrong in (np.array([object()]), object(), b"bytes"):
    with pytest.raises(Pi0RagError, match="cannot cross a bridge"):
      bridge.send(ours, wrong)
  ours.close()
  with pytest.raises(EOFError):
    bridge.receive(theirs)
  theirs.close()
