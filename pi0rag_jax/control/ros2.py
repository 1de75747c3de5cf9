"""Arms on ROS 2, by rclpy: JointState and Image come, JointTrajectory goes.

rclpy is the machine's, or the extra `ros2`, which brings a whole ROS 2 from PyPI. Options are those of `joint_arm`.
"""

import contextlib
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from pi0rag_jax.control import joint_arm
from pi0rag_jax.control.joint_arm import JointArm
from pi0rag_jax.errors import Pi0RagError

INSTALL = "pip install 'pi0rag-jax[ros2]', or source the setup.bash of a ROS 2"
OPTIONS = {"joints": None, "cameras": {}, "state": "/joint_states", "command": "/arm/command", "leader": "",
           "clutch": "", "low": [], "high": [], "speed": [], "hz": 20.0}


def driver(options: Mapping[str, Any]) -> "Ros2Arm":
  """Returns the arm. Errors: Pi0RagError without rclpy, and for options that it does not have."""
  return Ros2Arm(joint_arm.options(options, OPTIONS))


class Ros2Arm(JointArm):
  """An arm on ROS 2; its messages come on a thread of the driver's own."""

  def __init__(self, chosen: Mapping[str, Any]):
    try:
      import rclpy
      from builtin_interfaces.msg import Duration
      from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
      from rclpy.qos import qos_profile_sensor_data
      from sensor_msgs.msg import Image, JointState
      from std_msgs.msg import Bool
      from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
    except ImportError as error:
      raise Pi0RagError(f"robots on ROS 2 need rclpy: {INSTALL} ({error})") from error
    super().__init__(joint_arm.robot(len(chosen["joints"]), list(chosen["cameras"]), low=chosen["low"],
                                     high=chosen["high"], speed=chosen["speed"], hz=chosen["hz"]),
                     chosen["joints"], list(chosen["cameras"]))
    self._trajectory, self._point, self._duration = JointTrajectory, JointTrajectoryPoint, Duration
    self._context = rclpy.Context()
    rclpy.init(context=self._context, signal_handler_options=rclpy.SignalHandlerOptions.NO)
    self._node = node = rclpy.create_node("pi0rag_jax", context=self._context)
    self._publisher = node.create_publisher(JointTrajectory, chosen["command"], 1)
    # Which hears those who promise to deliver, and those who do not.
    hear = lambda topic, kind, take: node.create_subscription(kind, topic, take, qos_profile_sensor_data)  # noqa: E731
    hear(chosen["state"], JointState, lambda told: self.joints_came(told.name, told.position))
    for camera, topic in chosen["cameras"].items():
      hear(topic, Image, lambda told, camera=camera: self.picture_came(
        camera, told.height, told.width, told.step, told.encoding, told.data))
    if chosen["leader"]:
      hear(chosen["leader"], JointState, lambda told: self.leader_came(told.name, told.position))
    if chosen["clutch"]:
      self._clutched = False
      hear(chosen["clutch"], Bool, lambda told: self.clutch_came(told.data))
    self._executor = SingleThreadedExecutor(context=self._context)
    self._executor.add_node(node)
    self._ended = ExternalShutdownException
    self._thread = threading.Thread(target=self._spin, name="ros2", daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Lets the arm stand still and leaves the graph."""
    self.hold()
    self._executor.shutdown()
    self._thread.join()
    self._node.destroy_node()
    self._context.try_shutdown()

  def _spin(self) -> None:
    with contextlib.suppress(self._ended):
      self._executor.spin()

  def _send(self, positions_A: np.ndarray, seconds: float) -> None:
    whole, rest = divmod(round(seconds * 1e9), 10**9)
    point = self._point(positions=positions_A.tolist(), time_from_start=self._duration(sec=whole, nanosec=rest))
    self._publisher.publish(self._trajectory(joint_names=self._joints, points=[point]))
