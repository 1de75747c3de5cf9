"""Arms on ROS 2, by rclpy: JointState and Image come, JointTrajectory goes.

rclpy is the machine's, or the extra `ros2`, which brings a whole ROS 2 from PyPI. Options are those of `ros_arm`.
"""

import contextlib
import importlib
import threading
from collections.abc import Mapping
from typing import Any

from pi0rag_jax.control import joint_arm, ros_arm
from pi0rag_jax.control.ros_arm import RosArm
from pi0rag_jax.errors import Pi0RagError

INSTALL = "pip install 'pi0rag-jax[ros2]', or source the setup.bash of a ROS 2"
OPTIONS = ros_arm.OPTIONS


def driver(options: Mapping[str, Any]) -> "Ros2Arm":
  """Returns the arm. Errors: Pi0RagError without rclpy, and for options that it does not have."""
  return Ros2Arm(joint_arm.options(options, OPTIONS))


class Ros2Arm(RosArm):
  """An arm on ROS 2; its messages come on a thread of the driver's own."""

  def __init__(self, chosen: Mapping[str, Any]):
    try:
      rclpy = importlib.import_module("rclpy")
      executors, qos = importlib.import_module("rclpy.executors"), importlib.import_module("rclpy.qos")
      self._duration = importlib.import_module("builtin_interfaces.msg").Duration
      self._messages = messages = ros_arm.messages()
    except ImportError as error:
      raise Pi0RagError(f"robots on ROS 2 need rclpy: {INSTALL} ({error})") from error
    super().__init__(chosen)
    self._context = rclpy.Context()
    rclpy.init(context=self._context, signal_handler_options=rclpy.SignalHandlerOptions.NO)
    self.node = node = rclpy.create_node("pi0rag_jax", context=self._context)
    self._publishers = {topic: node.create_publisher(messages.JointTrajectory, topic, 1) for topic in self.commands}
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

  def _publish(self, topic: str, joints: list[str], positions: list[float], seconds: float) -> None:
    whole, rest = divmod(round(seconds * 1e9), 10**9)
    point = self._messages.JointTrajectoryPoint(
      positions=positions, time_from_start=self._duration(sec=whole, nanosec=rest))
    self._publishers[topic].publish(self._messages.JointTrajectory(joint_names=joints, points=[point]))
