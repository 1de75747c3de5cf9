"""A Franka: its motion, and pylibfranka against franka-sim's server, which enforces the robot's own bounds."""

import importlib.util
import pathlib
import shutil
import subprocess
import time

import numpy as np
import pytest

from pi0rag_jax.control import franka
from pi0rag_jax.control.franka_cycle import ACCELERATION, CYCLE_S, JERK, SPEED, Motion, close_or_open
from pi0rag_jax.errors import Pi0RagError

STAND_IN = pathlib.Path(__file__).with_name("franka_stand_in.py")
SIM = shutil.which("run-franka-sim-server")
THING_M = 0.03  # between the fingers
MISSING = ("there is no franka-sim here: pip install franka-sim==1.1.7 in an environment of its own, and have its bin "
           "on PATH") if SIM is None else franka.INSTALL


def test_a_motion_is_smooth_whatever_the_goals_are():
  rng, motion, dt = np.random.default_rng(0), Motion(np.zeros(2), [-9.0, -9.0], [9.0, 9.0]), CYCLE_S
  ats = [motion.at_A]
  for _ in range(20):
    goal_A = rng.uniform(-2.0, 2.0, 2)
    ats += [motion.step(goal_A, dt) for _ in range(50)]  # 20 Hz
  for order, most in ((1, SPEED), (2, ACCELERATION), (3, JERK)):
    assert np.abs(np.diff(ats, order, axis=0) / dt**order).max() <= 1.001 * most
  for _ in range(2000):
    motion.step(goal_A, dt)
  np.testing.assert_allclose(motion.at_A, goal_A, atol=1e-3)
  assert np.abs(motion.rest_A() - goal_A).max() < 1e-3


def test_a_motion_is_slow_where_a_joint_ends_and_leads_back():
  motion = Motion(np.zeros(2), [-9.0, -1.0], [1.0, 9.0])
  ways = np.diff([motion.step(np.array([3.0, -3.0]), CYCLE_S).copy() for _ in range(6000)], axis=0)
  np.testing.assert_allclose(motion.at_A, [0.98, -0.98], atol=0.01)
  assert np.abs(motion.at_A).max() < 1.0 and np.abs(ways[-1000:]).max() / CYCLE_S < 0.05
  for _ in range(3000):
    motion.step(np.zeros(2), CYCLE_S)
  np.testing.assert_allclose(motion.at_A, [0.0, 0.0], atol=1e-3)


def test_without_pylibfranka_it_is_said_what_is_missing(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(Pi0RagError, match=r"need pylibfranka: pip install 'pi0rag-jax\[franka\]'"):
    franka.driver({"address": "127.0.0.1"})


def until(condition, seconds=10.0):
  end_s = time.monotonic() + seconds
  while not condition() and time.monotonic() < end_s:
    time.sleep(0.01)
  return condition()


@pytest.mark.skipif(SIM is None or importlib.util.find_spec("pylibfranka") is None, reason=MISSING)
def test_an_arm_moves_stops_recovers_and_is_missed(tmp_path):
  import pylibfranka

  python = str(pathlib.Path(SIM).with_name("python"))
  with open(tmp_path / "log", "wb") as log:
    server = subprocess.Popen([python, str(STAND_IN), str(tmp_path), f"--gripper-object-width={THING_M}"], stdout=log,
                              stderr=log)
  assert until(lambda: "Server ready" in (tmp_path / "log").read_text(errors="replace"), 60.0)
  time.sleep(0.5)
  hand = pylibfranka.Gripper("127.0.0.1")
  for goal_m, width_m, grasped in ((0.05, 0.05, False), (0.0, THING_M, True), (0.01, THING_M, True),
                                   (0.06, 0.06, False)):
    close_or_open(hand, goal_m)
    state = hand.read_once()
    assert abs(state.width - width_m) < 1e-3 and state.is_grasped == grasped, "things are held with force"
  del hand
  arm = franka.driver({"address": "127.0.0.1", "cameras": {"front": "lavfi:testsrc=size=64x64:rate=30"},
                       "low": [-9.0] * 7, "high": [9.0] * 7})
  try:
    arm.begin(0)
    home_A = arm.observe()["state"].astype(float)
    assert home_A.shape == (8,) and arm.observe()["image"]["front"].shape == (64, 64, 3) and not arm.fault
    goal_A = home_A + [0, 0, 0, 0.2, 0, 0, -0.1, 0]
    goal_A[-1] = 0.04
    arm.act(goal_A)
    assert until(lambda: np.abs(arm.observe()["state"] - goal_A).max() < 0.03), arm.fault
    for goal_m in (0.0, 0.02):
      goal_A[-1] = goal_m
      arm.act(goal_A)
      time.sleep(0.3)
      assert abs(arm.observe()["state"][-1] - THING_M) < 1e-3
    goal_A[-1] = 0.04
    arm.act(goal_A)
    assert until(lambda: abs(arm.observe()["state"][-1] - 0.04) < 1e-3)
    arm.act(home_A)
    assert until(lambda: abs(arm.observe()["state"][3] - goal_A[3]) > 0.05)
    arm.hold()
    time.sleep(0.5)
    at_A = arm.observe()["state"]
    time.sleep(0.2)
    assert np.abs(arm.observe()["state"] - at_A)[:7].max() < 0.01 and abs(at_A[3] - home_A[3]) > 0.01
    arm.act(goal_A + [4.0, 0, 0, 0, 0, 0, 0, 0])  # which the usual bounds would not let through
    assert until(lambda: "reflex" in arm.fault), "the robot's own stop it"
    arm.begin(1)
    assert not arm.fault
    server.kill()
    killed_s = time.monotonic()
    assert until(lambda: arm.fault or time.monotonic() - arm.stamps()["joints"] > 0.09)
    assert time.monotonic() - killed_s < 1.0
  finally:
    arm.close()
    server.kill()
    server.wait()



def test_a_camera_that_is_not_there_is_named():
  from pi0rag_jax.control.cameras import Cameras

  with pytest.raises(Pi0RagError, match="the camera 'front' cannot be opened at '/dev/none'"):
    Cameras({"front": "/dev/none"}, lambda *_: None, lambda *_: None)
