"""A WidowX AI by trossen_arm, the vendor's own driver (extra `trossen`): six joints and the gripper.

Options: `address` of the arm, `leader`, the address of a leader arm, which leads while somebody moves it, `cameras`
{name: source} as `control.cameras` reads them, `low`, `high`, `speed` of the joints and `hz`. Without bounds they are
the arm's own.
"""

import importlib
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from pi0rag_jax.control import joint_arm
from pi0rag_jax.control.cameras import Cameras
from pi0rag_jax.control.joint_arm import JointArm
from pi0rag_jax.errors import Pi0RagError

INSTALL = "pip install 'pi0rag-jax[trossen]'"
JOINTS = 6
OPTIONS = {"address": None, "leader": "", "cameras": {}, "low": [], "high": [], "speed": [2.0] * JOINTS, "hz": 20.0}
FINGERS_M = (0.0, 0.044)
POLL_S = 0.01
CONNECTS_S = 5.0
# A leader that moved by so much leads for so long.
MOVED, LEADS_S = 0.02, 0.5


def driver(options: Mapping[str, Any]) -> "Trossen":
  """Returns the arm. Errors: Pi0RagError without trossen_arm, and where no arm answers."""
  return Trossen(joint_arm.options(options, OPTIONS))


class Trossen(JointArm):
  """An arm and, where there is one, its leader, which are read on a thread of the driver's own."""

  def __init__(self, chosen: Mapping[str, Any]):
    try:
      trossen_arm = importlib.import_module("trossen_arm")
    except ImportError as error:
      raise Pi0RagError(f"robots of Trossen need trossen_arm: {INSTALL}") from error
    made = joint_arm.robot(JOINTS, list(chosen["cameras"]), low=chosen["low"], high=chosen["high"],
                           speed=chosen["speed"], hz=chosen["hz"], fingers=FINGERS_M)
    super().__init__(made, list(chosen["cameras"]), fingers=True)
    self._errors = (trossen_arm.LogicError, trossen_arm.RuntimeError, RuntimeError)
    self._over, self._thread, self._shots, self._leader = threading.Event(), None, None, None
    effector = trossen_arm.StandardEndEffector
    self._arm = self._connected(trossen_arm, chosen["address"], effector.wxai_v0_follower)
    self._arm.set_all_modes(trossen_arm.Mode.position)
    try:
      if chosen["leader"]:
        self._leader = self._connected(trossen_arm, chosen["leader"], effector.wxai_v0_leader)
        self._leader.set_all_modes(trossen_arm.Mode.external_effort)
        self._leader.set_all_external_efforts([0.0] * (JOINTS + 1), 0.0, False)  # it weighs nothing
      self._shots = Cameras(chosen["cameras"], self._came, self._wrong.__setitem__)
    except Pi0RagError:
      self.close()
      raise
    self._thread = threading.Thread(target=self._poll, name="trossen", daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Lets the arm stand still and lets go of it."""
    self.hold()
    self._over.set()
    if self._shots is not None:
      self._shots.close()
    if self._thread is not None:
      self._thread.join(1.0)
    for arm in filter(None, (self._arm, self._leader)):
      arm.cleanup()

  def begin(self, seed: int) -> None:
    """Waits until everything has been seen."""
    if self._wrong:
      raise Pi0RagError(f"the arm does not answer any more: {self.fault}")
    super().begin(seed)

  def _connected(self, trossen_arm: Any, address: str, effector: Any) -> Any:
    arm = trossen_arm.TrossenArmDriver()
    try:
      arm.configure(trossen_arm.Model.wxai_v0, effector, address, True, CONNECTS_S)
    except self._errors as error:
      raise Pi0RagError(f"no WidowX AI answers at {address}: {' '.join(str(error).split())}") from error
    return arm

  def _poll(self) -> None:
    last_A, still_s = None, -LEADS_S
    while not self._over.wait(POLL_S):
      try:
        self._came("joints", np.asarray(self._arm.get_all_positions(), np.float32))
        if self._leader is None:
          continue
        leader_A = np.asarray(self._leader.get_all_positions(), np.float32)
      except self._errors as error:
        self._wrong["arm"] = " ".join(str(error).split())
        return
      if last_A is not None and np.abs(leader_A - last_A).max() > MOVED:
        still_s, last_A = time.monotonic(), leader_A
      last_A = leader_A if last_A is None else last_A
      if time.monotonic() - still_s < LEADS_S:
        self._led = time.monotonic(), leader_A

  def _send(self, positions_A: np.ndarray, seconds: float) -> None:
    try:
      self._arm.set_all_positions(positions_A.tolist(), seconds, False)
    except self._errors as error:
      self._wrong["arm"] = " ".join(str(error).split())
