"""FrankaKitchen's model, tasks and rules, as `gymnasium-robotics` has them (FrankaKitchen-v1)."""

import dataclasses
import importlib.util
import pathlib

import mujoco
import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots.kitchen import TICK_S
from pi0rag_jax.worlds.rotations import rotation

PACKAGE = "gymnasium_robotics"
_MODEL = "envs/assets/kitchen_franka/kitchen_assets/kitchen_env_model.xml"
FRONT, WRIST = "front", "wrist"
HAND, TIP = "panda0_link7", "end_effector"  # a body, and a site at the fingers' roots
ROBOT = ("panda0_link0",)
ARM, FINGERS = slice(0, 7), slice(7, 9)  # in qpos, qvel and ctrl
KETTLE = "kettle"  # the task whose thing lies loose, and its joint
STEPS = 40  # of the physics, in a tick
DONE_WITHIN = 0.3  # of a task's goal, by the Euclidean norm over its entries of qpos
NOISE_RAD = 0.001  # at most, on each joint and its velocity (rad/s)
SPEED = 2.0  # rad/s, or m/s of a finger, at an action of 1
_LOW = np.array([-2.9, -1.8, -2.9, -3.1, -2.9, 0.0, -2.9, 0.0, 0.0])  # rad, m: where joints may be sent
_HIGH = np.array([2.9, 1.8, 2.9, 0.0, 2.9, 3.8, 2.9, 0.04, 0.04])
START = np.array([
  1.48388023e-01, -1.76848573e00, 1.84390296e00, -2.47685760e00, 2.60252026e-01, 7.12533105e-01, 1.59515394e00,
  4.79267505e-02, 3.71350919e-02, -2.66279850e-04, -5.18043486e-05, 3.12877220e-05, -4.51199853e-05, -3.90842156e-06,
  -4.22629655e-05, 6.28065475e-05, 4.04984708e-05, 4.62730939e-04, -2.26906415e-04, -4.65501369e-04, -6.44129196e-03,
  -1.77048263e-03, 1.08009684e-03, -2.69397440e-01, 3.50383255e-01, 1.61944683e00, 1.00618764e00, 4.06395120e-03,
  -6.62095997e-03, -2.68278933e-04])
# The view that the package renders, and a camera of ours above the fingers.
_LOOKS_AT_M, _AWAY_M, _AZIMUTH, _ELEVATION, _FOV_DEG = (-0.2, 0.5, 2.0), 2.2, np.radians(70), np.radians(-35), 45.0
_TIP_M = (0.0, 0.0, 0.21)  # in the frame of HAND
_WRIST_M, _WRIST_FOV_DEG = (0.08, 0.0, -0.08), 75.0  # in the frame of TIP; it looks where the fingers point


@dataclasses.dataclass(frozen=True)
class Task:
  """What is asked for, and when it is done."""

  prompt: str
  entries: tuple[int, ...]  # of qpos
  goal: tuple[float, ...]  # rad, m
  site: str  # on what is moved
  joint: str  # that moves

  def is_done(self, qpos: np.ndarray) -> bool:
    """Returns whether a state is near enough to the goal."""
    return bool(np.linalg.norm(qpos[list(self.entries)] - self.goal) < DONE_WITHIN)


TASKS = {
  "microwave": Task("open the microwave", (22,), (-0.75,), "microhandle_site", "microwave"),
  "kettle": Task("push the kettle to the burner behind it", tuple(range(23, 30)),
                 (-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06), "kettle_site", "kettle"),
  "light_switch": Task("turn on the light", (17, 18), (-0.69, -0.05), "light_site", "light_switch"),
  "slide_cabinet": Task("slide the cabinet open", (19,), (0.37,), "slide_site", "slide_cabinet"),
  "bottom_burner": Task("turn on the bottom burner", (11, 12), (-0.88, -0.01), "knob2_site", "knob_Joint_2"),
  "top_burner": Task("turn on the top burner", (15, 16), (-0.92, -0.01), "knob4_site", "knob_Joint_4"),
  "hinge_cabinet": Task("open the right door of the hinged cabinet", (20, 21), (0.0, 1.45), "hinge_site2",
                        "right_hinge_cabinet"),
}
# D4RL's "complete": these four, in this order.
IN_A_ROW = ("microwave", "kettle", "light_switch", "slide_cabinet")


def target(measured_9: np.ndarray, action_9: np.ndarray) -> np.ndarray:
  """Returns where the joints are sent for a tick, float[9]: as far from where they are measured as the action says."""
  velocity_9 = SPEED * np.clip(action_9, -1.0, 1.0)
  return np.clip(measured_9 + velocity_9 * TICK_S, _LOW, _HIGH)


def model() -> mujoco.MjModel:
  """Returns the kitchen with the robot, and with cameras FRONT and WRIST."""
  spec = mujoco.MjSpec.from_file(str(assets()))
  forward = np.array([np.cos(_ELEVATION) * np.cos(_AZIMUTH), np.cos(_ELEVATION) * np.sin(_AZIMUTH), np.sin(_ELEVATION)])
  spec.worldbody.add_camera(name=FRONT, pos=np.subtract(_LOOKS_AT_M, _AWAY_M * forward), fovy=_FOV_DEG,
                            quat=_looking(forward, np.array([0.0, 0.0, 1.0])))
  turn_33 = rotation(np.array([0.0, 0.0, -np.pi / 4]))  # of TIP in HAND
  spec.body(HAND).add_camera(name=WRIST, pos=_TIP_M + turn_33 @ _WRIST_M, fovy=_WRIST_FOV_DEG,
                             quat=_looking(np.array([0.0, 0.0, 1.0]), turn_33[:, 0]))
  return spec.compile()


def _looking(view_3: np.ndarray, up_3: np.ndarray) -> np.ndarray:
  """Returns the quaternion of a camera that looks along a direction, with another one upwards in its picture."""
  back = -view_3 / np.linalg.norm(view_3)
  right = np.cross(up_3, back)
  right /= np.linalg.norm(right)
  quaternion = np.empty(4)
  mujoco.mju_mat2Quat(quaternion, np.stack([right, np.cross(back, right), back], axis=1).ravel())
  return quaternion


def assets() -> pathlib.Path:
  """Returns the model's file. Errors: Pi0RagError where its package is missing."""
  found = importlib.util.find_spec(PACKAGE)
  if found is None or not found.submodule_search_locations:
    raise Pi0RagError(f"world 'kitchen' needs {PACKAGE}, which has the kitchen: pip install 'pi0rag-jax[kitchen]'")
  return pathlib.Path(found.submodule_search_locations[0]) / _MODEL
