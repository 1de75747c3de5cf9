"""Arms on ROS 1, by rospy: JointState and Image come, JointTrajectory goes.

rospy is the machine's: `apt-get install ros-core python3-sensor-msgs python3-trajectory-msgs`. Options are those of
`ros_arm`, and `franka_state`, the topic of a Franka's own state. Its class is made of what its publisher says of it,
so that nothing of franka_ros is needed here.
"""

import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pi0rag_jax.control import joint_arm, ros_arm
from pi0rag_jax.control.ros_arm import RosArm
from pi0rag_jax.errors import Pi0RagError

INSTALL = "apt-get install ros-core python3-sensor-msgs python3-trajectory-msgs"
DEBIAN = "/usr/lib/python3/dist-packages"
OPTIONS = {**ros_arm.OPTIONS, "franka_state": ""}
PICTURE_BYTES = 1 << 24  # more than a picture has: rospy otherwise reads one in pieces, late
# Idle and move; beyond guiding the others are reflex, stopped by the user, recovery, and none.
_FRANKA_MOVES = (1, 2)
_FRANKA_GUIDING = 3


def driver(options: Mapping[str, Any]) -> "Ros1Arm":
  """Returns the arm. Errors: Pi0RagError without rospy, without a master, and for options that it does not have."""
  return Ros1Arm(joint_arm.options(options, OPTIONS))


def import_rospy() -> Any:
  """Returns rospy, the machine's where this environment has none."""
  if importlib.util.find_spec("rclpy") is not None:
    raise Pi0RagError("this environment has ROS 2, whose messages are called as those of ROS 1: use another one for "
                      "robots on ROS 1")
  if DEBIAN not in sys.path:
    sys.path.append(DEBIAN)  # the last, so that all else stays this environment's
  try:
    return importlib.import_module("rospy")
  except ImportError as error:
    raise Pi0RagError(f"robots on ROS 1 need rospy: {INSTALL} ({error})") from error


class Ros1Arm(RosArm):
  """An arm on ROS 1."""

  def __init__(self, chosen: Mapping[str, Any]):
    self._rospy = rospy = import_rospy()
    self._messages = messages = ros_arm.messages()
    super().__init__(chosen)
    _join(rospy)
    self._publishers = {topic: rospy.Publisher(topic, messages.JointTrajectory, queue_size=1, tcp_nodelay=True)
                        for topic in self.commands}
    self._subscribers = []

    def hear(topic: str, kind: Any, take: Callable[[Any], object]) -> None:
      self._subscribers.append(rospy.Subscriber(topic, kind, take, queue_size=1, tcp_nodelay=True,
                                                buff_size=PICTURE_BYTES))

    self._listen(chosen, messages, hear)
    if chosen["franka_state"]:
      hear(chosen["franka_state"], rospy.AnyMsg, _Franka(self).came)

  def close(self) -> None:
    """Lets the arm stand still and listens no more."""
    self.hold()
    for subscriber in self._subscribers:
      subscriber.unregister()
    for publisher in self._publishers.values():
      publisher.unregister()

  def _publish(self, topic: str, joints: list[str], positions: list[float], seconds: float) -> None:
    point = self._messages.JointTrajectoryPoint(positions=positions,
                                                time_from_start=self._rospy.Duration.from_sec(seconds))
    self._publishers[topic].publish(self._messages.JointTrajectory(joint_names=joints, points=[point]))

  def franka_came(self, mode: int, angles: list[float], errors: list[str]) -> None:
    """Takes a Franka's state: a reflex or an emergency stop is a fault, and who guides the arm by hand leads it."""
    if not errors and mode in (*_FRANKA_MOVES, _FRANKA_GUIDING):
      self._wrong.pop("franka", None)
    else:
      self._wrong["franka"] = f"the Franka does not move (mode {mode}): {', '.join(errors) or 'no error is named'}"
    if mode == _FRANKA_GUIDING:
      self._leads(np.asarray(angles, np.float32))


class _Franka:
  """Reads franka_msgs/FrankaState, whose class is made of the definition that comes with the first one."""

  def __init__(self, arm: Ros1Arm):
    self._arm, self._class, self._making = arm, None, threading.Lock()

  def came(self, message: Any) -> None:
    """Takes a message as its bytes."""
    with self._making:
      if self._class is None:
        header, dynamic = message._connection_header, importlib.import_module("genpy.dynamic")
        self._class = dynamic.generate_dynamic(header["type"], header["message_definition"])[header["type"]]
    state = self._class()
    state.deserialize(message._buff)
    errors = state.current_errors
    self._arm.franka_came(int(state.robot_mode), list(state.q),
                          [name for name in errors.__slots__ if getattr(errors, name) is True])


def _join(rospy: Any) -> None:
  """Makes this process a node, once. Errors: Pi0RagError where no master answers."""
  if not importlib.import_module("rosgraph").is_master_online():
    where = os.environ.get("ROS_MASTER_URI", "http://localhost:11311")
    raise Pi0RagError(f"no ROS master answers at {where}: start roscore, or set ROS_MASTER_URI")
  if not rospy.core.is_initialized():
    rospy.init_node("pi0rag_jax", anonymous=True, disable_signals=True)
