"""A WidowX AI: the vendor's driver against the vendor's simulated controller."""

import importlib.util
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from pi0rag_jax.control import trossen
from pi0rag_jax.errors import Pi0RagError

# Beside this interpreter, or on PATH.
SIM = shutil.which("trossen-arm-sim", path=str(pathlib.Path(sys.executable).parent)) or shutil.which("trossen-arm-sim")
MISSING = "there is no trossen_arm_sim here: pip install trossen_arm_sim==0.2.3" if SIM is None else trossen.INSTALL
ARM, LEADER = "127.0.0.1", "127.0.0.2"


def until(condition, seconds=10.0):
  end_s = time.monotonic() + seconds
  while not condition() and time.monotonic() < end_s:
    time.sleep(0.01)
  return condition()


def test_without_trossen_arm_it_is_said_what_is_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, "trossen_arm", None)
  with pytest.raises(Pi0RagError, match=r"need trossen_arm: pip install 'pi0rag-jax\[trossen\]'"):
    trossen.driver({"address": ARM})


@pytest.mark.skipif(SIM is None or importlib.util.find_spec("trossen_arm") is None, reason=MISSING)
def test_an_arm_moves_stops_is_led_and_missed():
  servers = [subprocess.Popen([SIM, "--host", host, "--ws-port", str(18765 + number)], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) for number, host in enumerate((ARM, LEADER))]
  arm = None
  try:
    def connected():
      nonlocal arm
      try:
        arm = arm or trossen.driver({"address": ARM, "leader": LEADER})
      except Pi0RagError:
        return False
      return True

    assert until(connected, 40.0)
    arm.begin(0)
    assert arm.observe()["state"].shape == (7,) and arm.led() is None and not arm.fault
    goal_A = np.array([0.3, 0.6, 0.5, -0.2, 0.0, 0.0, 0.02])
    before_A = arm.observe()["state"]

    def there():
      nonlocal before_A
      before_A = arm.robot.limits.safe(goal_A, arm.robot.actions, arm.observe()["state"], before_A, tick_s=0.05)
      arm.act(before_A)
      time.sleep(0.05)
      return np.abs(arm.observe()["state"] - goal_A).max() < 0.03

    assert until(there)
    arm.hold()
    time.sleep(0.2)
    at_A = arm.observe()["state"]
    time.sleep(0.2)
    assert np.abs(arm.observe()["state"] - at_A).max() < 0.01
    import trossen_arm

    arm._leader.set_all_modes(trossen_arm.Mode.position)  # as a hand would move it
    arm._leader.set_all_positions([0.2, 0.4, 0.3, 0.0, 0.0, 0.0, 0.0], 1.0, False)
    assert until(lambda: arm.led() is not None)
    assert until(lambda: arm.led() is None), "nobody moves it any more"
    servers[0].kill()
    killed_s = time.monotonic()
    assert until(lambda: arm.fault or time.monotonic() - arm.stamps()["joints"] > 0.09)
    assert time.monotonic() - killed_s < 2.0
  finally:
    for server in servers:
      server.kill()
      server.wait()
    if arm is not None:
      arm.close()
