"""gym-aloha's two tasks on its simulated ALOHA, with an expert: absolute joints of two arms, 300 ticks of 20 ms.

As openpi has it (examples/aloha_sim): the camera above, in a square with black margins, and no others.
"""

import importlib.util
from typing import Any

import mujoco
import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots import aloha as robot
from pi0rag_jax.worlds.aloha_expert import Expert
from pi0rag_jax.worlds.mujoco_model import NOTHING, Shift, free_things, get_state, require_opengl, set_state, turned
from pi0rag_jax.worlds.mujoco_world import MujocoWorld
from pi0rag_jax.worlds.world import EXPERT, FILMS, NOMINAL, REWINDS, TELLS, Family, WorldConfig

TIME_LIMIT = 300
PROMPTS = {"transfer_cube": "Transfer cube", "insertion": "Insert the peg into the socket"}
_TOP = "top"  # of the model's cameras
_ROBOT, _TABLE = ("vx300s_left", "vx300s_right"), ("table",)
_FINGERS = [6, 14]  # in qpos and ctrl, one of each gripper

CONDITIONS = {
  NOMINAL: NOTHING,
  "camera_shift": Shift("the camera was knocked: the picture moves by a pixel",
                        turned(**{_TOP: (0.015, 0.015)})),
  "camera_shift_double": Shift("the camera was knocked twice as far",
                               turned(**{_TOP: (0.03, 0.03)})),
  "joint_offset": Shift("the right arm's waist is measured 0.03 rad beside where it is",
                        measured_offset=(*[0.0] * 7, 0.03)),
  "actuator_delay": Shift("both arms get their actions 0.1 s late", delay_ticks=5),
  "slippery": Shift("things slip in the fingers", friction=0.4),
  "heavy": Shift("things are half as heavy again", mass=1.5),
  "table_low": Shift("the table and all on it are 1 cm lower", table_m=-0.01),
  "table_high": Shift("the table and all on it are 1 cm higher", table_m=0.01),
  "dim_warm_light": Shift("the light is a little dimmer and warmer", light_rgb=(0.94, 0.88, 0.8)),
}


class AlohaWorld(MujocoWorld):
  """A task of gym-aloha under a condition; see `robots.aloha` for observations and actions."""

  dim = robot.DIM
  cameras = (_TOP,)
  native_px = (480, 640)

  def __init__(self, config: WorldConfig):
    super().__init__(config, CONDITIONS[config.condition], TIME_LIMIT)
    self._env, self._task, self._physics = _environment(config.task)
    self._shift.apply(self.model, robot=_ROBOT, table=_TABLE)
    self._expert = Expert(self.model, config.task)

  @property
  def model(self) -> mujoco.MjModel:
    """The environment's model."""
    return self._physics.model.ptr

  @property
  def data(self) -> mujoco.MjData:
    """Its state."""
    return self._physics.data.ptr

  def things(self) -> np.ndarray:
    """Returns where the cube is, float32[3], or peg and socket, float32[6]."""
    return np.concatenate([self.data.qpos[address:address + 3] for address in free_things(self.model, _ROBOT)],
                          dtype=np.float32)

  def _reset(self, seed: int) -> np.ndarray:
    self._env.reset(seed=seed)
    for address in free_things(self.model, _ROBOT):
      self.data.qpos[address + 2] += self._shift.table_m
    set_state(self.model, self.data, get_state(self.model, self.data))
    return self._measured().astype(np.float32)

  def _tick(self, action_A: np.ndarray) -> bool:
    return bool(self._env.step(action_A)[-1]["is_success"])

  def _act(self) -> np.ndarray:
    return self._expert.act(self.data, _opening(self.data.ctrl[_FINGERS]), _opening(self.data.qpos[_FINGERS]))

  def _measured(self) -> np.ndarray:
    """Returns the joints and the grippers' openings, float[14]."""
    return self._task.get_qpos(self._physics)

  def _observation(self, pictures: list[np.ndarray]) -> dict[str, Any]:
    state_P = self._measured()
    state_P[: len(self._shift.measured_offset)] += self._shift.measured_offset
    return {"images": {"cam_high": pictures[0].transpose(2, 0, 1)}, "state": state_P,
            "prompt": PROMPTS[self._config.task]}


def _environment(name: str):
  """Returns gym-aloha's environment, which makes no pictures, and its dm_control task and physics."""
  from gym_aloha.env import AlohaEnv

  env = AlohaEnv(name, obs_type="pixels_agent_pos")
  task, physics = env._env.task, env._env.physics
  no_picture = {"top": np.zeros((1, 1, 3), np.uint8)}
  task.get_observation = lambda physics: {"qpos": task.get_qpos(physics), "images": no_picture}
  return env, task, physics


def _opening(fingers_2: np.ndarray) -> list[float]:
  """Returns how far the left and the right gripper are open, 0 to 1, by the place of one finger of each."""
  from gym_aloha.constants import normalize_puppet_gripper_position

  return [float(normalize_puppet_gripper_position(finger)) for finger in fingers_2]


def require(task: str, condition: str) -> None:
  """Raises Pi0RagError where gym-aloha or OpenGL is missing."""
  del task, condition
  if importlib.util.find_spec("gym_aloha") is None:
    raise Pi0RagError("world 'aloha' needs gym-aloha: pip install gym-aloha==0.1.5")
  require_opengl()


FAMILY = Family(
  robot="aloha", tasks=tuple(PROMPTS), conditions={name: shift.description for name, shift in CONDITIONS.items()},
  make=AlohaWorld, require=require, time_limit=lambda task: TIME_LIMIT, abilities=(REWINDS, EXPERT, FILMS, TELLS))
