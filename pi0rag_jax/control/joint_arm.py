"""An arm that is sent the angles of its joints, whatever carries the messages: a plain robot.

An observation is `image` {camera: uint8[H, W, 3]} and `state` float[P], the joints' angles and, where it has one, the
gripper's place; actions are float[T, P]: where to be one tick later.
"""

import functools
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.robots import fields, plain
from pi0rag_jax.robots.limits import Limits
from pi0rag_jax.robots.robot import ActionSpace, Robot
from pi0rag_jax.worlds.world import Progress

# Of one radian, see ActionSpace.
COST = 3.0
COMES_S = 5.0  # in which each part of an observation has to come at the beginning
LED_S = 0.2  # after which a leader that says nothing more leads no more


def options(given: Mapping[str, Any], defaults: Mapping[str, Any], *, of: str = "robot") -> dict[str, Any]:
  """Returns a driver's options with what is left out. Errors: Pi0RagError for one that it does not have."""
  for name in given:
    if name not in defaults:
      raise unknown_name(f"option of the {of}", str(name), defaults)
  found = {**defaults, **given}
  for name, value in found.items():
    if value is None:
      raise Pi0RagError(f"the {of} needs the option '{name}': --options='{{\"{name}\": ...}}', or a file of such JSON")
    if name in defaults and defaults[name] is not None and not isinstance(value, type(defaults[name])) and not (
        isinstance(defaults[name], float) and isinstance(value, int)):
      raise Pi0RagError(f"the {of}'s option '{name}' is {value!r}; allowed: {_KINDS[type(defaults[name])]}")
  return found


_KINDS = {str: "a text", dict: "an object", list: "a list", float: "a number", bool: "true or false"}


def robot(joints: int, cameras: Sequence[str], *, low: Sequence[float] = (), high: Sequence[float] = (),
          speed: Sequence[float] = (), hz: float = 20.0, fingers: tuple[float, float] | None = None) -> Robot:
  """Returns the Robot of an arm of so many joints.

  Args:
    low, high: rad; without any a turn to each side.
    speed: rad/s.
    fingers: where they are closed and open, in the robot's unit; one more entry of state and actions.
  """
  for name, values in (("low", low), ("high", high), ("speed", speed)):
    if values and len(values) != joints:
      raise Pi0RagError(f"the robot's option '{name}' has {len(values)} numbers, the arm has {joints} joints")
  low, high, speed = tuple(low) or (-2 * math.pi,) * joints, tuple(high) or (2 * math.pi,) * joints, tuple(speed)
  cost = (COST,) * joints
  if fingers is not None:
    low, high, cost = (*low, min(fingers)), (*high, max(fingers)), (*cost, 2 / abs(fingers[1] - fingers[0]))
    speed = (*speed, math.inf) if speed else ()
  dim = len(cost)
  return Robot(
    plain.NAME, functools.partial(plain.inputs, state_dim=dim), functools.partial(plain.outputs, dim=dim),
    ActionSpace((False,) * dim, cost, low, high),
    functools.partial(plain.example, tuple(cameras), dim, (fields.EXAMPLE_PX, fields.EXAMPLE_PX)), tick_s=1 / hz,
    limits=Limits(speed=speed, measured=tuple(range(dim)) if speed else ()))


class JointArm:
  """The newest of what an arm and its cameras say, which comes on other threads. Who inherits sends and receives.

  Args:
    parts: of the state, one after the other, as they come.
    fingers: whether the last entry of state and actions is a gripper's.
  """

  progress: Progress | None = None  # only people know

  def __init__(self, made: Robot, cameras: Sequence[str], *, parts: Sequence[str] = ("joints",), fingers: bool = False):
    self.robot, self._cameras, self._parts, self._fingers = made, list(cameras), list(parts), fingers
    self._news = threading.Condition()
    self._seen: dict[str, tuple[float, np.ndarray]] = {}
    self._led: tuple[float, np.ndarray] | None = None
    self._goal_A: np.ndarray | None = None  # what was sent last
    self._holding = False
    self._wrong: dict[str, str] = {}  # by who says so

  @property
  def fault(self) -> str:
    """Why the arm takes no actions any more."""
    return "; ".join(self._wrong.copy().values())

  def begin(self, seed: int) -> None:
    """Waits until everything has been seen. Errors: Pi0RagError that names what has not."""
    del seed
    wanted = {*self._parts, *self._cameras}
    with self._news:
      if not self._news.wait_for(lambda: wanted <= self._seen.keys(), COMES_S):
        missing = ", ".join(f"'{name}'" for name in sorted(wanted - self._seen.keys()))
        raise Pi0RagError(f"nothing has come of {missing} in {COMES_S:g} s: is the robot's program running, and are "
                          "these the right topics?")

  def stamps(self) -> Mapping[str, float]:
    """Returns when each part came last."""
    return {name: came_s for name, (came_s, _) in self._seen.copy().items()}

  def observe(self) -> dict[str, Any]:
    """Returns the newest observation."""
    seen = self._seen.copy()
    return {"image": {name: seen[name][1] for name in self._cameras}, "state": self._state(seen)}

  def act(self, action_A: np.ndarray) -> None:
    """Sends the joints to where they are to be one tick later."""
    self._holding, self._goal_A = False, np.asarray(action_A, float)
    self._send(self._goal_A, self.robot.tick_s)

  def hold(self) -> None:
    """Sends the joints to where they are; fingers stay at what they were told last, so that they drop nothing."""
    seen = self._seen.copy()
    if self._holding or not seen.keys() >= set(self._parts):
      return
    self._holding, at_A = True, self._state(seen).astype(float)
    if self._fingers and self._goal_A is not None:
      at_A[-1] = self._goal_A[-1]
    self._send(at_A, self.robot.tick_s)

  def led(self) -> np.ndarray | None:
    """Returns where whoever leads wants the joints."""
    if self._led is None or time.monotonic() - self._led[0] > LED_S:
      return None
    return self._led[1]

  def _send(self, positions_A: np.ndarray, seconds: float) -> None:
    raise NotImplementedError

  def _state(self, seen: Mapping[str, tuple[float, np.ndarray]]) -> np.ndarray:
    return np.concatenate([seen[name][1] for name in self._parts])

  def _came(self, name: str, value: np.ndarray) -> None:
    with self._news:
      self._seen[name] = time.monotonic(), value
      self._news.notify_all()

  def _leads(self, positions_A: np.ndarray) -> None:
    """Takes where whoever leads wants the joints; fingers that it says nothing of stay."""
    assert self.robot.actions is not None
    if len(positions_A) < self.robot.actions.dim:
      seen = self._seen.copy()
      if self._goal_A is None and self._parts[-1] not in seen:
        return
      positions_A = np.append(positions_A, (self._goal_A if self._goal_A is not None else seen[self._parts[-1]][1])[-1])
    self._led = time.monotonic(), np.asarray(positions_A, np.float32)
