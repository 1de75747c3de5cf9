"""A robot on a real ROS, for trials without one: `python -m pi0rag_jax.control.ros_stand_in ros1 50 20 224`.

What follows ros1 or ros2 are its rate and its cameras' (Hz), and the side of their pictures (px).
An arm of seven joints and a gripper follow a JointTrajectory each and publish JointState; the wrist's camera sends
JPEG too. What it is told on /stand_in: `silent CAMERA`, `stop` (it says nothing any more), `lead` (a leader arm moves);
on ROS 1 `guide`, `reflex` and `well` are a Franka's own state.
"""

import array
import importlib
import io
import sys
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from pi0rag_jax.cli import user_errors
from pi0rag_jax.control import ros_arm
from pi0rag_jax.control.ros1 import import_rospy
from pi0rag_jax.errors import Pi0RagError

JOINTS = [f"joint{number}" for number in range(1, 8)]
CAMERAS = ("front", "wrist")
OPTIONS = {"joints": JOINTS, "cameras": {name: f"/{name}/image_raw" for name in CAMERAS},
           "leader": "/leader/joint_states"}  # of its driver
FINGER, COMPRESSED = "finger_joint1", "/wrist/image_raw/compressed"
GRIPPER = {"joint": FINGER, "command": "/gripper/command", "state": "/gripper/joint_states", "closed": 0.0,
           "open": 0.04}
_SPEED, _FINGER_SPEED = 0.1, 0.004  # rad and m per tick
# What the driver reads of a Franka's state; a real one has more.
FRANKA = """float64[7] q
uint8 robot_mode
franka_msgs/Errors current_errors
================================================================================
MSG: franka_msgs/Errors
bool joint_reflex
bool cartesian_reflex
"""


class Arm:
  """What moves; `publish` sends (topic, kind, values)."""

  def __init__(self, publish: Callable[[str, str, np.ndarray], object], hz: float, camera_hz: float, px: int):
    self.publish, self.hz, self.camera_hz = publish, hz, camera_hz
    self.at, self.goal, self.told = np.zeros(7), np.zeros(7), set()
    self.finger, self.finger_goal = GRIPPER["open"], GRIPPER["open"]
    rng = np.random.default_rng(0)
    self.pictures = {name: rng.integers(0, 255, (px, px, 3), np.uint8) for name in CAMERAS}
    self.encoded = _jpeg(self.pictures["wrist"])

  def follow(self, positions: Sequence[float]) -> None:
    """Takes where the joints are to go."""
    self.goal = np.array(positions)

  def grip(self, positions: Sequence[float]) -> None:
    """Takes where the finger is to go."""
    (self.finger_goal,) = positions

  def hear(self, said: str) -> None:
    """Takes what it is told."""
    self.told.add(said)

  def run(self) -> None:
    """Lives until the process ends."""
    threading.Thread(target=self._pace, args=[self.camera_hz, self._look], daemon=True).start()
    self._pace(self.hz, self._move)

  def _pace(self, hz: float, tick: Callable[[], object]) -> None:
    due = time.monotonic()
    while True:
      tick()
      due += 1 / hz
      time.sleep(max(0.0, due - time.monotonic()))

  def _look(self) -> None:
    for name, picture in self.pictures.items():
      if "stop" not in self.told and f"silent {name}" not in self.told:
        self.publish(f"/{name}/image_raw", "Image", picture)
        if name == "wrist":
          self.publish(COMPRESSED, "CompressedImage", self.encoded)

  def _move(self) -> None:
    if "stop" in self.told:
      return
    self.at = self.at + np.clip(self.goal - self.at, -_SPEED, _SPEED)
    self.finger += float(np.clip(self.finger_goal - self.finger, -_FINGER_SPEED, _FINGER_SPEED))
    self.publish("/joint_states", "JointState", self.at)
    self.publish(GRIPPER["state"], "JointState", np.array([self.finger]))
    if "lead" in self.told:
      self.publish("/leader/joint_states", "JointState", self.at + 0.01)
    self.publish("/franka_state", "FrankaState", self.at)


def _names(values: np.ndarray) -> list[str]:
  return JOINTS if len(values) == len(JOINTS) else [FINGER]


def _jpeg(picture_HW3: np.ndarray) -> np.ndarray:
  encoded = io.BytesIO()
  Image.fromarray(picture_HW3).save(encoded, "JPEG")
  return np.frombuffer(encoded.getvalue(), np.uint8)


MakeArm = Callable[[Callable[[str, str, np.ndarray], object]], Arm]


def ros1(arm_of: MakeArm) -> None:
  """Runs on ROS 1."""
  rospy = import_rospy()
  messages, dynamic = ros_arm.messages(), importlib.import_module("genpy.dynamic")
  rospy.init_node("stand_in")
  franka = dynamic.generate_dynamic("franka_msgs/FrankaState", FRANKA)["franka_msgs/FrankaState"]
  kinds = {"Image": messages.Image, "CompressedImage": messages.CompressedImage, "JointState": messages.JointState,
           "FrankaState": franka}
  publishers = {}

  def publish(topic, kind, values):
    if topic not in publishers:
      publishers[topic] = rospy.Publisher(topic, kinds[kind], queue_size=1, tcp_nodelay=True)
    message = kinds[kind]()
    if kind == "Image":
      message.height, message.width, message.encoding, message.step = *values.shape[:2], "rgb8", 3 * values.shape[1]
      message.data = values.tobytes()
    elif kind == "CompressedImage":
      message.format, message.data = "jpeg", values.tobytes()
    elif kind == "JointState":
      message.name, message.position = _names(values), values.tolist()
    else:
      message.q, message.robot_mode = values.tolist(), 3 if "guide" in arm.told else 4 if "reflex" in arm.told else 2
      message.current_errors.joint_reflex = "reflex" in arm.told
      if "well" in arm.told:
        arm.told -= {"guide", "reflex", "well"}
    publishers[topic].publish(message)

  arm = arm_of(publish)
  rospy.Subscriber("/arm/command", messages.JointTrajectory, lambda told: arm.follow(told.points[-1].positions),
                   queue_size=1, tcp_nodelay=True)
  rospy.Subscriber(GRIPPER["command"], messages.JointTrajectory, lambda told: arm.grip(told.points[-1].positions),
                   queue_size=1, tcp_nodelay=True)
  rospy.Subscriber("/stand_in", messages.String, lambda told: arm.hear(told.data))
  arm.run()


def ros2(arm_of: MakeArm) -> None:
  """Runs on ROS 2."""
  rclpy, messages = importlib.import_module("rclpy"), ros_arm.messages()
  rclpy.init()
  node = rclpy.create_node("stand_in")
  publishers = {}

  def publish(topic, kind, values):
    if kind == "FrankaState":
      return
    message = getattr(messages, kind)()
    if topic not in publishers:
      publishers[topic] = node.create_publisher(type(message), topic, 1)
    if kind == "Image":
      message.height, message.width, message.encoding, message.step = *values.shape[:2], "rgb8", 3 * values.shape[1]
      message.data = array.array("B", values.tobytes())
    elif kind == "CompressedImage":
      message.format, message.data = "jpeg", array.array("B", values.tobytes())
    else:
      message.name, message.position = _names(values), values.tolist()
    publishers[topic].publish(message)

  arm = arm_of(publish)
  node.create_subscription(messages.JointTrajectory, "/arm/command",
                           lambda told: arm.follow(told.points[-1].positions), 1)
  node.create_subscription(messages.JointTrajectory, GRIPPER["command"],
                           lambda told: arm.grip(told.points[-1].positions), 1)
  node.create_subscription(messages.String, "/stand_in", lambda told: arm.hear(told.data), 10)
  threading.Thread(target=rclpy.spin, args=[node], daemon=True).start()
  arm.run()


if __name__ == "__main__":
  with user_errors("pi0rag_jax.control.ros_stand_in"):
    try:
      kind, *rest = sys.argv[1:]
      hz, camera_hz, px = float(rest[0]), float(rest[1]), int(rest[2])
      run = {"ros1": ros1, "ros2": ros2}[kind]
    except (ValueError, IndexError, KeyError):
      raise Pi0RagError(f"the arguments are {sys.argv[1:]}; allowed: ros1 or ros2, two rates in Hz and a size in px, "
                        "as ros1 50 20 224") from None
    run(lambda publish: Arm(publish, hz, camera_hz, px))
