"""An arm that is sent the angles of its joints, whatever carries the messages: a plain robot.

An observation is `image` {camera: uint8[H, W, 3]} and `state` float[P], the joints' angles; actions are float[T, P]:
the angles to be at one tick later. Options, as the flags give them:

    {"joints": ["joint1", ...], "cameras": {"base_0_rgb": "/camera/image_raw"}, "state": "/joint_states",
     "command": "/arm/command", "leader": "/leader/joint_states", "clutch": "/leader/clutch",
     "low": [...], "high": [...], "speed": [...], "hz": 20}
"""

import functools
import importlib
import math
import threading
import time
import types
from collections.abc import Callable, Mapping, Sequence
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
_ENCODINGS = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0), "mono8": (0, 0, 0)}
_DEPTHS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}


def options(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a driver's options with what is left out. Errors: Pi0RagError for one that it does not have."""
  for name in given:
    if name not in defaults:
      raise unknown_name("option of the robot", str(name), defaults)
  found = {**defaults, **given}
  for name, value in found.items():
    if value is None:
      raise Pi0RagError(f"the robot needs the option '{name}': --options='{{\"{name}\": ...}}', or a file of such JSON")
    if name in defaults and defaults[name] is not None and not isinstance(value, type(defaults[name])) and not (
        isinstance(defaults[name], float) and isinstance(value, int)):
      raise Pi0RagError(f"the robot's option '{name}' is {value!r}; allowed: {_KINDS[type(defaults[name])]}")
  return found


_KINDS = {str: "a text", dict: "an object", list: "a list", float: "a number", bool: "true or false"}


def robot(joints: int, cameras: Sequence[str], *, low: Sequence[float] = (), high: Sequence[float] = (),
          speed: Sequence[float] = (), hz: float = 20.0, fingers_m: tuple[float, float] | None = None) -> Robot:
  """Returns the Robot of an arm of so many joints.

  Args:
    low, high: rad; without any a turn to each side.
    speed: rad/s.
    fingers_m: how far they close and open; they are one more entry of state and actions then.
  """
  for name, values in (("low", low), ("high", high), ("speed", speed)):
    if values and len(values) != joints:
      raise Pi0RagError(f"the robot's option '{name}' has {len(values)} numbers, the arm has {joints} joints")
  low, high, speed = tuple(low) or (-2 * math.pi,) * joints, tuple(high) or (2 * math.pi,) * joints, tuple(speed)
  cost = (COST,) * joints
  if fingers_m is not None:
    low, high, cost = (*low, fingers_m[0]), (*high, fingers_m[1]), (*cost, 2 / (fingers_m[1] - fingers_m[0]))
    speed = (*speed, math.inf) if speed else ()
  dim = len(cost)
  return Robot(
    plain.NAME, functools.partial(plain.inputs, state_dim=dim), functools.partial(plain.outputs, dim=dim),
    ActionSpace((False,) * dim, cost, low, high),
    functools.partial(plain.example, tuple(cameras), dim, (fields.EXAMPLE_PX, fields.EXAMPLE_PX)), tick_s=1 / hz,
    limits=Limits(speed=speed, measured=tuple(range(dim)) if speed else ()))


def messages() -> Any:
  """Returns the classes of ROS' messages that arms need; both ROS call them alike."""
  homes = {"Image": "sensor_msgs", "JointState": "sensor_msgs", "Bool": "std_msgs", "String": "std_msgs",
           "JointTrajectory": "trajectory_msgs", "JointTrajectoryPoint": "trajectory_msgs"}
  return types.SimpleNamespace(**{
    name: getattr(importlib.import_module(f"{home}.msg"), name) for name, home in homes.items()})


class JointArm:
  """The newest of what an arm and its cameras say; messages come on other threads. Who inherits sends and receives."""

  progress: Progress | None = None  # only people know

  def __init__(self, made: Robot, joints: Sequence[str], cameras: Sequence[str]):
    self.robot, self._joints, self._cameras = made, list(joints), list(cameras)
    self._news = threading.Condition()
    self._seen: dict[str, tuple[float, np.ndarray]] = {}
    self._led: tuple[float, np.ndarray] | None = None
    self._clutched = True  # where there is no clutch, whoever moves the leader leads
    self._holding = False
    self._wrong: dict[str, str] = {}  # by who says so

  @property
  def fault(self) -> str:
    """Why the arm takes no actions any more."""
    return "; ".join(self._wrong.copy().values())

  def begin(self, seed: int) -> None:
    """Waits until everything has been seen. Errors: Pi0RagError that names what has not."""
    del seed
    wanted = {"joints", *self._cameras}
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
    seen = {name: value for name, (_, value) in self._seen.copy().items()}
    return {"image": {name: seen[name] for name in self._cameras}, "state": seen["joints"]}

  def act(self, action_A: np.ndarray) -> None:
    """Sends the joints to where they are to be one tick later."""
    self._holding = False
    self._send(np.asarray(action_A, float), self.robot.tick_s)

  def hold(self) -> None:
    """Sends the joints to where they are."""
    if not self._holding and "joints" in self._seen:
      self._holding = True
      self._send(self._seen["joints"][1].astype(float), self.robot.tick_s)

  def led(self) -> np.ndarray | None:
    """Returns where whoever leads wants the joints."""
    if self._led is None or not self._clutched or time.monotonic() - self._led[0] > LED_S:
      return None
    return self._led[1]

  def _listen(self, chosen: Mapping[str, Any], kinds: Any,
              hear: Callable[[str, Any, Callable[[Any], object]], object]) -> None:
    """Subscribes to what the options name, by a middleware's `hear(topic, kind, take)`."""
    hear(chosen["state"], kinds.JointState, lambda told: self.joints_came(told.name, told.position))
    for camera, topic in chosen["cameras"].items():
      hear(topic, kinds.Image, lambda told, camera=camera: self.picture_came(
        camera, told.height, told.width, told.step, told.encoding, told.data))
    if chosen["leader"]:
      hear(chosen["leader"], kinds.JointState, lambda told: self.leader_came(told.name, told.position))
    if chosen["clutch"]:
      self._clutched = False
      hear(chosen["clutch"], kinds.Bool, lambda told: self.clutch_came(told.data))

  def _send(self, positions_A: np.ndarray, seconds: float) -> None:
    raise NotImplementedError

  def _came(self, name: str, value: np.ndarray) -> None:
    with self._news:
      self._seen[name] = time.monotonic(), value
      self._news.notify_all()

  def joints_came(self, names: Sequence[str], positions: Sequence[float]) -> None:
    """Takes a message with angles, which may name other joints too, in any order."""
    if (angles_P := self._angles(names, positions)) is not None:
      self._came("joints", angles_P)

  def leader_came(self, names: Sequence[str], positions: Sequence[float]) -> None:
    """Takes the leader's angles."""
    if (angles_P := self._angles(names, positions)) is not None:
      self._led = time.monotonic(), angles_P

  def clutch_came(self, engaged: bool) -> None:
    """Takes whether the leader leads."""
    self._clutched = bool(engaged)

  def _angles(self, names: Sequence[str], positions: Sequence[float]) -> np.ndarray | None:
    place = {name: number for number, name in enumerate(names)}
    if not all(name in place for name in self._joints):
      return None  # of another part of the robot
    return np.array([positions[place[name]] for name in self._joints], np.float32)

  def picture_came(self, camera: str, height: int, width: int, step: int, encoding: str, data: Any) -> None:
    """Takes a picture as ROS has it; one of an encoding that is none of colours is a fault."""
    if encoding not in _ENCODINGS:
      self._wrong[camera] = f"camera '{camera}' sends '{encoding}'; allowed: {', '.join(_ENCODINGS)}"
      return
    depth = _DEPTHS[encoding]
    rows = np.frombuffer(data, np.uint8).reshape(height, step)[:, : width * depth].reshape(height, width, depth)
    self._came(camera, rows if encoding == "rgb8" else np.ascontiguousarray(rows[..., list(_ENCODINGS[encoding])]))
