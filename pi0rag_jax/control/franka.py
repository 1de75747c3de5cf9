"""A Franka arm by pylibfranka, libfranka's own binding (extra `franka`): joint angles at 1 kHz, and the hand.

Options: `address` of the robot, `hand` (whether there is one: one more entry of state and actions, the fingers' width
in m), `cameras` {name: source} as `control.cameras` reads them, `low`, `high`, `speed` of the joints and `hz`. Bounds
are an FR3's unless they are given.
"""

import contextlib
import importlib.util
import multiprocessing
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from pi0rag_jax.control import franka_cycle, joint_arm
from pi0rag_jax.control.cameras import Cameras
from pi0rag_jax.control.franka_cycle import CAME, GOAL, HOLD, JOINTS, LATE, MOVE, QUIT, SHARED, STATE, WANTED
from pi0rag_jax.control.joint_arm import JointArm
from pi0rag_jax.errors import Pi0RagError

INSTALL = "pip install 'pi0rag-jax[franka]'"
# rad, of an FR3. Source: Franka Robotics, robot and interface specifications.
LOW = [-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159]
HIGH = [2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159]
FINGERS_M = (0.0, 0.08)
OPTIONS = {"address": None, "hand": True, "cameras": {}, "low": LOW, "high": HIGH, "speed": [1.0] * JOINTS, "hz": 20.0}
_STARTS_S, _ENDS_S = 20.0, 3.0


def driver(options: Mapping[str, Any]) -> "Franka":
  """Returns the arm. Errors: Pi0RagError without pylibfranka, and where no robot answers."""
  return Franka(joint_arm.options(options, OPTIONS))


class Franka(JointArm):
  """An arm whose cycle, and whose hand, run in processes of their own."""

  def __init__(self, chosen: Mapping[str, Any]):
    if importlib.util.find_spec("pylibfranka") is None:
      raise Pi0RagError(f"robots of Franka need pylibfranka: {INSTALL}")
    made = joint_arm.robot(JOINTS, list(chosen["cameras"]), low=chosen["low"], high=chosen["high"],
                           speed=chosen["speed"], hz=chosen["hz"], fingers=FINGERS_M if chosen["hand"] else None)
    super().__init__(made, list(chosen["cameras"]))
    spawned = multiprocessing.get_context("spawn")
    shared = spawned.RawArray("d", SHARED)
    self._numbers = np.frombuffer(shared)
    self._dim = made.actions.dim if made.actions is not None else JOINTS
    self._pipes, self._processes = [], []
    ends = [chosen["low"] or LOW, chosen["high"] or HIGH]
    for work, more in ((franka_cycle.run, ends), *([(franka_cycle.grip, [])] if chosen["hand"] else [])):
      ours, theirs = spawned.Pipe()
      process = spawned.Process(target=work, args=[chosen["address"], shared, theirs, *more], daemon=True)
      process.start()
      theirs.close()
      self._pipes.append(ours)
      self._processes.append(process)
    try:
      for pipe in self._pipes:
        self._answer(pipe)
      self._shots = Cameras(chosen["cameras"], self._came, self._wrong.__setitem__)
    except Pi0RagError:
      self.close()
      raise

  @property
  def late(self) -> int:
    """Cycles of which the robot had to do without a command."""
    return int(self._numbers[LATE])

  @property
  def fault(self) -> str:
    """Why the arm takes no actions any more."""
    for number, pipe in enumerate(self._pipes):
      with contextlib.suppress(EOFError, OSError):
        if pipe.poll() and (text := pipe.recv()):
          self._wrong[str(number)] = text
    return super().fault

  def begin(self, seed: int) -> None:
    """Waits until everything has been seen; a robot that a reflex has stopped may move again."""
    self.hold()
    if self.fault:
      with contextlib.suppress(OSError):
        self._pipes[0].send("go on")
        self._answer(self._pipes[0])
        self._wrong.clear()
    self._see()
    super().begin(seed)

  def stamps(self) -> Mapping[str, float]:
    """Returns when each part came last."""
    self._see()
    return super().stamps()

  def observe(self) -> dict[str, Any]:
    """Returns the newest observation."""
    self._see()
    return super().observe()

  def hold(self) -> None:
    """Has the cycle come to rest."""
    self._holding, self._numbers[WANTED] = True, HOLD

  def close(self) -> None:
    """Comes to rest and ends the processes."""
    self._numbers[WANTED] = QUIT
    if hasattr(self, "_shots"):
      self._shots.close()
    for process in self._processes:
      process.join(_ENDS_S)
      if process.is_alive():
        process.kill()
        process.join()

  def _see(self) -> None:
    if self._numbers[CAME]:
      self._seen["joints"] = float(self._numbers[CAME]), self._numbers[STATE][: self._dim].astype(np.float32)

  def _send(self, positions_A: np.ndarray, seconds: float) -> None:
    del seconds
    self._numbers[GOAL][: self._dim] = positions_A
    self._numbers[WANTED] = MOVE

  def _answer(self, pipe: Any) -> None:
    end_s = time.monotonic() + _STARTS_S
    while time.monotonic() < end_s:
      with contextlib.suppress(EOFError):
        if pipe.poll(0.1):
          if text := pipe.recv():
            raise Pi0RagError(f"no Franka can be used: {text}")
          return
    raise Pi0RagError(f"no Franka has answered in {_STARTS_S:g} s")
