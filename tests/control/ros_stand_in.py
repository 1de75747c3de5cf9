"""A robot on a real ROS, 1 or 2: `python ros_stand_in.py ros1|ros2 HZ CAMERA_HZ [PX]`.

It follows JointTrajectory, and publishes JointState and two cameras. What it is told on /stand_in: `silent CAMERA`,
`stop` (it says nothing any more), `lead` (a leader arm moves), `guide`, `reflex`, `well` (a Franka's own state).
"""

import sys
import threading
import time

import numpy as np

JOINTS = [f"joint{number}" for number in range(1, 8)]
CAMERAS = ("front", "wrist")
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

  def __init__(self, publish, hz, camera_hz, px):
    self.publish, self.hz, self.camera_hz = publish, hz, camera_hz
    self.at, self.goal, self.told = np.zeros(7), np.zeros(7), set()
    rng = np.random.default_rng(0)
    self.pictures = {name: rng.integers(0, 255, (px, px, 3), np.uint8) for name in CAMERAS}

  def follow(self, positions):
    self.goal = np.array(positions)

  def hear(self, said):
    self.told.add(said)

  def run(self):
    threading.Thread(target=self._pace, args=[self.camera_hz, self._look], daemon=True).start()
    self._pace(self.hz, self._move)

  def _pace(self, hz, tick):
    due = time.monotonic()
    while True:
      tick()
      due += 1 / hz
      time.sleep(max(0.0, due - time.monotonic()))

  def _look(self):
    for name, picture in self.pictures.items():
      if "stop" not in self.told and f"silent {name}" not in self.told:
        self.publish(f"/{name}/image_raw", "Image", picture)

  def _move(self):
    if "stop" in self.told:
      return
    self.at = self.at + np.clip(self.goal - self.at, -0.1, 0.1)
    self.publish("/joint_states", "JointState", self.at)
    if "lead" in self.told:
      self.publish("/leader/joint_states", "JointState", self.at + 0.01)
    self.publish("/franka_state", "FrankaState", self.at)


def ros1(arm_of):
  sys.path.append("/usr/lib/python3/dist-packages")
  import rospy
  from genpy.dynamic import generate_dynamic
  from sensor_msgs.msg import Image, JointState
  from std_msgs.msg import String
  from trajectory_msgs.msg import JointTrajectory

  rospy.init_node("stand_in")
  franka = generate_dynamic("franka_msgs/FrankaState", FRANKA)["franka_msgs/FrankaState"]
  kinds = {"Image": Image, "JointState": JointState, "FrankaState": franka}
  publishers = {}

  def publish(topic, kind, values):
    if topic not in publishers:
      publishers[topic] = rospy.Publisher(topic, kinds[kind], queue_size=1, tcp_nodelay=True)
    message = kinds[kind]()
    if kind == "Image":
      message.height, message.width, message.encoding, message.step = *values.shape[:2], "rgb8", 3 * values.shape[1]
      message.data = values.tobytes()
    elif kind == "JointState":
      message.name, message.position = JOINTS, values.tolist()
    else:
      message.q, message.robot_mode = values.tolist(), 3 if "guide" in arm.told else 4 if "reflex" in arm.told else 2
      message.current_errors.joint_reflex = "reflex" in arm.told
      if "well" in arm.told:
        arm.told -= {"guide", "reflex", "well"}
    publishers[topic].publish(message)

  arm = arm_of(publish)
  rospy.Subscriber("/arm/command", JointTrajectory, lambda told: arm.follow(told.points[-1].positions), queue_size=1,
                   tcp_nodelay=True)
  rospy.Subscriber("/stand_in", String, lambda told: arm.hear(told.data))
  arm.run()


def ros2(arm_of):
  import array

  import rclpy
  from sensor_msgs.msg import Image, JointState
  from std_msgs.msg import String
  from trajectory_msgs.msg import JointTrajectory

  rclpy.init()
  node = rclpy.create_node("stand_in")
  publishers = {}

  def publish(topic, kind, values):
    if kind == "FrankaState":
      return
    message = Image() if kind == "Image" else JointState()
    if topic not in publishers:
      publishers[topic] = node.create_publisher(type(message), topic, 1)
    if kind == "Image":
      message.height, message.width, message.encoding, message.step = *values.shape[:2], "rgb8", 3 * values.shape[1]
      message.data = array.array("B", values.tobytes())
    else:
      message.name, message.position = JOINTS, values.tolist()
    publishers[topic].publish(message)

  arm = arm_of(publish)
  node.create_subscription(JointTrajectory, "/arm/command", lambda told: arm.follow(told.points[-1].positions), 1)
  node.create_subscription(String, "/stand_in", lambda told: arm.hear(told.data), 10)
  threading.Thread(target=rclpy.spin, args=[node], daemon=True).start()
  arm.run()


if __name__ == "__main__":
  hz, camera_hz, px = float(sys.argv[2]), float(sys.argv[3]), int((*sys.argv[4:], "224")[0])
  {"ros1": ros1, "ros2": ros2}[sys.argv[1]](lambda publish: Arm(publish, hz, camera_hz, px))
