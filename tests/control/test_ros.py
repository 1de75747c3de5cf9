"""Arms on ROS 1 and ROS 2, against a real master and graph: what every driver keeps to."""

import importlib.util
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from pi0rag_jax.control import joint_arm, ros1, ros2, ros_stand_in
from pi0rag_jax.control.ros_arm import RosArm
from pi0rag_jax.control.ros_stand_in import CAMERAS
from pi0rag_jax.errors import Pi0RagError

OPTIONS = {**ros_stand_in.OPTIONS, "hz": 50.0, "gripper": ros_stand_in.GRIPPER,
           "cameras": {"front": "/front/image_raw", "wrist": ros_stand_in.COMPRESSED}}
WAIT_S = 10.0


def until(condition):
  """Returns whether it came true in time."""
  end_s = time.monotonic() + WAIT_S
  while not condition() and time.monotonic() < end_s:
    time.sleep(0.005)
  return condition()


class Ros1:
  """A master of its own, at a free port."""

  def __init__(self):
    if shutil.which("rosmaster") is None or not os.path.isdir(f"{ros1.DEBIAN}/rospy"):
      pytest.skip(f"there is no ROS 1 here: {ros1.INSTALL}")
    if importlib.util.find_spec("rclpy") is not None:
      pytest.skip("ROS 1 needs an environment without ROS 2, whose messages are called the same")
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      port = free.getsockname()[1]
    told = {"ROS_MASTER_URI": f"http://127.0.0.1:{port}", "ROS_IP": "127.0.0.1", "ROS_HOSTNAME": "127.0.0.1"}
    self.environment = {**os.environ, **told}
    os.environ.update(told)
    self.master = subprocess.Popen(["rosmaster", "--core", "-p", str(port)], env=self.environment,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rospy = ros1.import_rospy()
    import rosgraph

    assert until(rosgraph.is_master_online)
    self.arm = ros1.driver({**OPTIONS, "franka_state": "/franka_state"})
    from std_msgs.msg import String

    self.publisher = rospy.Publisher("/stand_in", String, queue_size=10, latch=True)
    self.say = lambda text: self.publisher.publish(String(text))

  def close(self):
    self.arm.close()
    self.master.terminate()
    self.master.wait()


class Ros2:
  """A graph of this machine alone."""

  def __init__(self):
    if importlib.util.find_spec("rclpy") is None:
      pytest.skip(f"there is no ROS 2 here: {ros2.INSTALL}")
    told = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_DOMAIN_ID": str(100 + os.getpid() % 100)}
    self.environment = {**os.environ, **told}
    os.environ.update(told)
    self.arm = ros2.driver(OPTIONS)
    from std_msgs.msg import String

    publisher = self.arm.node.create_publisher(String, "/stand_in", 10)
    self.say = lambda text: publisher.publish(String(data=text))

  def close(self):
    self.arm.close()


@pytest.fixture(scope="module", params=[Ros1, Ros2])
def there(request, tmp_path_factory):
  before = dict(os.environ)
  os.environ["ROS_LOG_DIR"] = str(tmp_path_factory.mktemp("log"))
  graph = request.param()
  stand_in = subprocess.Popen([sys.executable, "-m", ros_stand_in.__name__, request.param.__name__.lower(), "50", "20",
                               "64"], env=graph.environment)
  yield graph
  stand_in.send_signal(signal.SIGKILL)
  stand_in.wait()
  graph.close()
  os.environ.clear()
  os.environ.update(before)


def test_a_real_arm_is_seen_moved_held_led_and_missed(there, monkeypatch):
  monkeypatch.setattr("pi0rag_jax.control.joint_arm.COMES_S", 60.0)  # a busy machine starts the stand-in slowly
  arm = there.arm
  arm.begin(0)
  seen = arm.observe()
  assert seen["state"].shape == (8,) and {name: seen["image"][name].shape for name in CAMERAS} == {
    name: (64, 64, 3) for name in CAMERAS}
  assert arm.robot.observe({**seen, "prompt": "go"})["state"].shape == (8,)
  first = arm.stamps()
  assert until(lambda: all(arm.stamps()[name] > first[name] for name in first)), "news come by themselves"

  goal_A = np.array([*np.linspace(0.1, 0.7, 7), 0.01])
  assert until(lambda: (arm.act(goal_A), time.sleep(0.02), np.allclose(arm.observe()["state"], goal_A, atol=1e-3))[-1])
  arm.act(np.append(goal_A[:7] + 1.0, 0.04))
  assert until(lambda: arm.observe()["state"][0] > 0.2)
  arm.hold()
  at = arm.observe()["state"]
  time.sleep(0.15)
  now = arm.observe()["state"]
  assert np.abs(now - at)[:7].max() < 0.25, "it stands, after what was under way"
  assert until(lambda: abs(arm.observe()["state"][7] - 0.04) < 1e-4), "fingers do as they were told"

  assert arm.led() is None and not arm.fault
  there.say("lead")
  assert until(lambda: arm.led() is not None)
  np.testing.assert_allclose(arm.led()[:7], arm.observe()["state"][:7] + 0.01, atol=0.05)
  assert arm.led()[7] == np.float32(0.04), "a leader without fingers leaves them"
  if isinstance(there, Ros1):
    there.say("reflex")
    assert until(lambda: "joint_reflex" in arm.fault)
    there.say("well")
    assert until(lambda: not arm.fault)
    there.say("guide")
    assert until(lambda: arm.led() is not None and np.allclose(arm.led(), arm.observe()["state"], atol=1e-3))

  there.say("silent wrist")
  time.sleep(0.3)
  now_s = time.monotonic()
  assert now_s - arm.stamps()["wrist"] > 0.1 > now_s - arm.stamps()["joints"]
  there.say("stop")
  assert until(lambda: time.monotonic() - arm.stamps()["joints"] > 0.2)


def test_without_a_middleware_it_is_said_what_is_missing(monkeypatch):
  monkeypatch.setattr(ros1, "DEBIAN", "/nowhere")
  monkeypatch.setattr(sys, "path", [path for path in sys.path if "dist-packages" not in path])
  for name in ("rospy", "rclpy"):
    monkeypatch.setitem(sys.modules, name, None)
  monkeypatch.setattr(ros1.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(Pi0RagError, match="robots on ROS 1 need rospy: apt-get install ros-core"):
    ros1.driver({"joints": ["a"]})
  with pytest.raises(Pi0RagError, match=r"robots on ROS 2 need rclpy: pip install 'pi0rag-jax\[ros2\]'"):
    ros2.driver({"joints": ["a"]})


@pytest.mark.parametrize(("options", "words"), [
  ({}, "needs the option 'joints'"), ({"joints": ["a"], "colour": 1}, "unknown option of the robot 'colour'"),
  ({"joints": ["a"], "hz": "fast"}, "option 'hz' is 'fast'; allowed: a number"),
  ({"joints": ["a"], "low": [0, 1]}, "option 'low' has 2 numbers, the arm has 1 joints"),
  ({"joints": ["a"], "gripper": {"joint": "f", "open": 0.04}}, "the gripper needs the option 'command'"),
  ({"joints": ["a"], "gripper": {"joint": "f", "command": "/c", "open": 0}}, "closed at 0.0 and open at 0; allowed"),
  ({"joints": ["a"], "gripper": {"width": 1}}, "unknown option of the gripper 'width'")])
def test_options_of_no_arm_are_named(options, words):
  with pytest.raises(Pi0RagError, match=words):
    Silent(joint_arm.options(options, ros1.OPTIONS))


class Silent(RosArm):
  def __init__(self, chosen):
    super().__init__(chosen)
    self.sent = []

  def _publish(self, topic, joints, positions, seconds):
    self.sent.append((topic, joints, positions, seconds))


def test_messages_of_all_kinds_become_observations(monkeypatch):
  monkeypatch.setattr("pi0rag_jax.control.joint_arm.COMES_S", 0.01)
  given = {"joints": ["a", "b"], "cameras": {"front": "/front"}, "hz": 10.0,
           "gripper": {"joint": "f", "command": "/f", "closed": 0.8, "open": 0.0}}
  arm = Silent(joint_arm.options(given, ros1.OPTIONS))
  assert arm.robot.actions.low[-1] == 0.0 and arm.robot.actions.high[-1] == 0.8
  arm.joints_came(["gripper"], [1.0])  # of another part of the robot
  arm.picture_came("front", 2, 1, 4, "bgr8", bytes([1, 2, 3, 0, 4, 5, 6, 0]))  # rows are padded
  with pytest.raises(Pi0RagError, match="nothing has come of 'gripper', 'joints'"):
    arm.begin(0)
  arm.leader_came(["a", "b"], [1.0, 2.0])
  assert arm.led() is None, "nobody knows yet where the fingers are"
  arm.joints_came(["b", "x", "a"], [2.0, 9.0, 1.0])
  with pytest.raises(Pi0RagError, match="nothing has come of 'gripper'"):
    arm.begin(0)
  arm.hold()
  assert not arm.sent
  arm.gripper_came(["a", "f"], [1.0, 0.5])
  arm.begin(0)
  seen = arm.observe()
  np.testing.assert_array_equal(seen["state"], [1.0, 2.0, 0.5])
  np.testing.assert_array_equal(seen["image"]["front"], [[[3, 2, 1]], [[6, 5, 4]]])
  arm.leader_came(["a", "b"], [1.0, 3.0])
  np.testing.assert_array_equal(arm.led(), [1.0, 3.0, 0.5])
  arm.leader_came(["f", "a", "b"], [0.7, 1.0, 3.0])
  np.testing.assert_allclose(arm.led(), [1.0, 3.0, 0.7], rtol=1e-6)
  arm.act(np.array([1.0, 2.5, 0.8]))
  assert arm.sent == [("/arm/command", ["a", "b"], [1.0, 2.5], 0.1), ("/f", ["f"], [0.8], 0.1)]
  arm.sent.clear()
  arm.hold()
  arm.hold()
  assert arm.sent == [("/arm/command", ["a", "b"], [1.0, 2.0], 0.1), ("/f", ["f"], [0.8], 0.1)], "it drops nothing"
  arm.compressed_came("front", b"no picture")
  assert "camera 'front': b'no pictu'... is no picture" in arm.fault
  encoded = io.BytesIO()
  Image.fromarray(np.full((8, 16, 3), 200, np.uint8)).save(encoded, "JPEG")
  arm.compressed_came("front", encoded.getvalue())
  assert not arm.fault and arm.observe()["image"]["front"].shape == (8, 16, 3)
  arm.picture_came("front", 2, 1, 4, "16UC1", b"")
  assert "camera 'front' sends '16UC1'" in arm.fault
