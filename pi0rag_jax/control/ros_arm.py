"""An arm on either ROS: JointState and pictures come, JointTrajectory goes. Options, as the flags give them:

    {"joints": ["joint1", ...], "cameras": {"base_0_rgb": "/camera/image_raw"}, "state": "/joint_states",
     "command": "/arm/command", "leader": "/leader/joint_states", "clutch": "/leader/clutch",
     "gripper": {"joint": "finger_joint1", "command": "/gripper/command", "closed": 0.0, "open": 0.04},
     "low": [...], "high": [...], "speed": [...], "hz": 20}

A camera's topic that ends in `compressed` carries JPEG or PNG. A gripper is one more entry of state and actions, from
`closed` to `open`, and takes a JointTrajectory of its own; `state` is the topic of its JointState, where it is not the
arm's.
"""

import importlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pi0rag_jax.control import joint_arm
from pi0rag_jax.control.joint_arm import JointArm
from pi0rag_jax.data import pictures
from pi0rag_jax.errors import Pi0RagError

# On both.
OPTIONS = {"joints": None, "cameras": {}, "state": "/joint_states", "command": "/arm/command", "leader": "",
           "clutch": "", "gripper": {}, "low": [], "high": [], "speed": [], "hz": 20.0}
_GRIPPER = {"joint": None, "command": None, "closed": 0.0, "open": None}
_COMPRESSED = "compressed"  # how such topics of image_transport end
_ENCODINGS = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0), "mono8": (0, 0, 0)}
_DEPTHS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
_HOMES = {"Image": "sensor_msgs", "CompressedImage": "sensor_msgs", "JointState": "sensor_msgs", "Bool": "std_msgs",
          "String": "std_msgs", "JointTrajectory": "trajectory_msgs", "JointTrajectoryPoint": "trajectory_msgs"}


def messages() -> Any:
  """Returns the classes of ROS' messages that arms need; both ROS call them alike."""
  return types.SimpleNamespace(**{
    name: getattr(importlib.import_module(f"{home}.msg"), name) for name, home in _HOMES.items()})


def gripper(chosen: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the options of an arm's gripper, {} where it has none. Errors: Pi0RagError for what is missing or wrong."""
  if not chosen["gripper"]:
    return {}
  found = joint_arm.options(chosen["gripper"], {**_GRIPPER, "state": chosen["state"]}, of="gripper")
  ends = found["closed"], found["open"]
  if not all(isinstance(end, int | float) for end in ends) or ends[0] == ends[1]:
    raise Pi0RagError(f"the gripper is closed at {ends[0]!r} and open at {ends[1]!r}; allowed: two different numbers")
  return found


class RosArm(JointArm):
  """An arm whose messages come on other threads; who inherits publishes and subscribes."""

  def __init__(self, chosen: Mapping[str, Any]):
    self._gripper = found = gripper(chosen)
    self._joints, self._clutched = list(chosen["joints"]), True  # where there is no clutch, the leader always leads
    self._command = chosen["command"]
    made = joint_arm.robot(
      len(self._joints), list(chosen["cameras"]), low=chosen["low"], high=chosen["high"], speed=chosen["speed"],
      hz=chosen["hz"], fingers=(found["closed"], found["open"]) if found else None)
    super().__init__(made, list(chosen["cameras"]), parts=("joints", "gripper") if found else ("joints",),
                     fingers=bool(found))

  @property
  def commands(self) -> list[str]:
    """The topics that take JointTrajectory."""
    return [self._command, *([self._gripper["command"]] if self._gripper else [])]

  def led(self) -> np.ndarray | None:
    """Returns where whoever leads wants the joints."""
    return super().led() if self._clutched else None

  def _listen(self, chosen: Mapping[str, Any], kinds: Any,
              hear: Callable[[str, Any, Callable[[Any], object]], object]) -> None:
    """Subscribes to what the options name, by a middleware's `hear(topic, kind, take)`."""
    hear(chosen["state"], kinds.JointState, lambda told: self.joints_came(told.name, told.position))
    if self._gripper:
      hear(self._gripper["state"], kinds.JointState, lambda told: self.gripper_came(told.name, told.position))
    for camera, topic in chosen["cameras"].items():
      if topic.endswith(_COMPRESSED):
        hear(topic, kinds.CompressedImage, lambda told, camera=camera: self.compressed_came(camera, bytes(told.data)))
      else:
        hear(topic, kinds.Image, lambda told, camera=camera: self.picture_came(
          camera, told.height, told.width, told.step, told.encoding, told.data))
    if chosen["leader"]:
      hear(chosen["leader"], kinds.JointState, lambda told: self.leader_came(told.name, told.position))
    if chosen["clutch"]:
      self._clutched = False
      hear(chosen["clutch"], kinds.Bool, lambda told: self.clutch_came(told.data))

  def _send(self, positions_A: np.ndarray, seconds: float) -> None:
    goal, joints = positions_A.tolist(), len(self._joints)
    self._publish(self._command, self._joints, goal[:joints], seconds)
    if self._gripper:
      self._publish(self._gripper["command"], [self._gripper["joint"]], goal[joints:], seconds)

  def _publish(self, topic: str, joints: list[str], positions: list[float], seconds: float) -> None:
    """Sends a JointTrajectory of one point, to be reached in so many seconds."""
    raise NotImplementedError

  def joints_came(self, names: Sequence[str], positions: Sequence[float]) -> None:
    """Takes a message with angles, which may name other joints too, in any order."""
    if (angles_P := _of(self._joints, names, positions)) is not None:
      self._came("joints", angles_P)

  def gripper_came(self, names: Sequence[str], positions: Sequence[float]) -> None:
    """Takes a message with the fingers' place, which may name other joints too."""
    if (place_1 := _of([self._gripper["joint"]], names, positions)) is not None:
      self._came("gripper", place_1)

  def leader_came(self, names: Sequence[str], positions: Sequence[float]) -> None:
    """Takes the leader's angles, and its fingers' place where the message has it."""
    if (angles_P := _of(self._joints, names, positions)) is not None:
      fingers_1 = _of([self._gripper["joint"]], names, positions) if self._gripper else None
      self._leads(angles_P if fingers_1 is None else np.append(angles_P, fingers_1))

  def clutch_came(self, engaged: bool) -> None:
    """Takes whether the leader leads."""
    self._clutched = bool(engaged)

  def compressed_came(self, camera: str, data: bytes) -> None:
    """Takes an encoded picture; one that cannot be read is a fault until one comes that can."""
    try:
      self._came(camera, pictures.decode(data))
      self._wrong.pop(camera, None)
    except (OSError, ValueError) as error:
      self._wrong[camera] = f"camera '{camera}': {error}"

  def picture_came(self, camera: str, height: int, width: int, step: int, encoding: str, data: Any) -> None:
    """Takes a picture as ROS has it; one of an encoding that is none of colours is a fault."""
    if encoding not in _ENCODINGS:
      self._wrong[camera] = f"camera '{camera}' sends '{encoding}'; allowed: {', '.join(_ENCODINGS)}"
      return
    depth = _DEPTHS[encoding]
    rows = np.frombuffer(data, np.uint8).reshape(height, step)[:, : width * depth].reshape(height, width, depth)
    self._came(camera, rows if encoding == "rgb8" else np.ascontiguousarray(rows[..., list(_ENCODINGS[encoding])]))


def _of(joints: Sequence[str], names: Sequence[str], positions: Sequence[float]) -> np.ndarray | None:
  """Returns the joints' places; None for a message of another part of the robot."""
  place = {name: number for number, name in enumerate(names)}
  if not all(name in place for name in joints):
    return None
  return np.array([positions[place[name]] for name in joints], np.float32)
