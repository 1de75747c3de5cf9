"""MetaWorld's 50 tasks with its own experts: state of four numbers, two cameras, 300 ticks of 12.5 ms.

Goals that no picture shows are in MetaWorld's own observation: its experts see them, policies do not.
"""

import importlib.util
import warnings
from typing import Any

import mujoco
import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots import metaworld as robot
from pi0rag_jax.worlds.mujoco_model import (
  NOTHING,
  Shift,
  free_things,
  get_state,
  require_opengl,
  set_state,
  turn_upright,
  turned,
)
from pi0rag_jax.worlds.mujoco_world import MujocoWorld
from pi0rag_jax.worlds.world import EXPERT, FILMS, NOMINAL, REWINDS, TELLS, Family, WorldConfig

TIME_LIMIT = 300
# Tasks whose expert closes its fingers around a thing that it has come down to. Openings of its fingers: when it sets
# out, and at least while it closes them, further above the thing than where it has come down.
GRASPED = ("push-v3", "pick-place-v3", "coffee-push-v3", "sweep-into-v3", "peg-insert-side-v3")
_OPEN, _CLOSING, _DOWN_M = 0.9, 0.5, 0.05
PROMPTS = {
  "assembly-v3": "put the ring of the wrench over the peg",
  "basketball-v3": "put the ball into the basket",
  "bin-picking-v3": "move the cube from the one bin to the other",
  "box-close-v3": "put the lid on the box",
  "button-press-topdown-v3": "press the button from above",
  "button-press-topdown-wall-v3": "reach over the wall and press the button from above",
  "button-press-v3": "press the button",
  "button-press-wall-v3": "reach around the wall and press the button",
  "coffee-button-v3": "press the button of the coffee machine",
  "coffee-pull-v3": "pull the mug away from the coffee machine to the goal",
  "coffee-push-v3": "push the mug under the coffee machine",
  "dial-turn-v3": "turn the dial by half a turn",
  "disassemble-v3": "lift the wrench off the peg",
  "door-close-v3": "close the door",
  "door-lock-v3": "lock the door by turning the lock down",
  "door-open-v3": "pull the door open",
  "door-unlock-v3": "unlock the door by turning the lock to the side",
  "drawer-close-v3": "close the drawer",
  "drawer-open-v3": "open the drawer",
  "faucet-close-v3": "turn the faucet clockwise",
  "faucet-open-v3": "turn the faucet counterclockwise",
  "hammer-v3": "drive the nail in with the hammer",
  "hand-insert-v3": "put the hand into the hole",
  "handle-press-side-v3": "press the handle down from the side",
  "handle-press-v3": "press the handle down",
  "handle-pull-side-v3": "pull the handle up from the side",
  "handle-pull-v3": "pull the handle up",
  "lever-pull-v3": "pull the lever up",
  "peg-insert-side-v3": "put the peg into the hole in the side of the box",
  "peg-unplug-side-v3": "pull the peg out sideways",
  "pick-out-of-hole-v3": "lift the puck out of the hole to the goal",
  "pick-place-v3": "lift the puck to the goal",
  "pick-place-wall-v3": "lift the puck over the wall to the goal",
  "plate-slide-back-side-v3": "get the plate out of the cabinet sideways",
  "plate-slide-back-v3": "get the plate out of the cabinet",
  "plate-slide-side-v3": "slide the plate into the cabinet sideways",
  "plate-slide-v3": "slide the plate into the cabinet",
  "push-back-v3": "pull the block back to the goal",
  "push-v3": "push the puck to the goal",
  "push-wall-v3": "push the block around the wall to the goal",
  "reach-v3": "reach the goal",
  "reach-wall-v3": "reach over the wall to the goal",
  "shelf-place-v3": "put the block on the shelf",
  "soccer-v3": "push the ball into the soccer goal",
  "stick-pull-v3": "put the stick through the handle of the thermos and pull the thermos to the goal",
  "stick-push-v3": "push the thermos to the goal with the stick",
  "sweep-into-v3": "sweep the block into the hole",
  "sweep-v3": "sweep the block off the table",
  "window-close-v3": "slide the window shut",
  "window-open-v3": "slide the window open",
}
_FRONT, _WRIST = "corner3", "gripperPOV"  # of the model's cameras
_ROBOT, _TABLE = ("base", "mocap"), ("tablelink",)
_THINGS = np.r_[4:7, 11:14, 36:39]  # places in MetaWorld's own observation


CONDITIONS = {
  NOMINAL: NOTHING,
  "camera_shift": Shift("both cameras were knocked: the picture moves by a pixel or two",
                        turned(**{_FRONT: (0.012, 0.012), _WRIST: (0.022, -0.022)})),
  "camera_shift_double": Shift("both cameras were knocked twice as far",
                               turned(**{_FRONT: (0.024, 0.024), _WRIST: (0.044, -0.044)})),
  "wrist_camera_turn": Shift("the wrist camera was turned in its mount by two degrees about two axes",
                             turned(**{_WRIST: (-0.035, 0.035)})),
  "hand_offset": Shift("the hand is measured 2 cm to the side of where it is", measured_offset=(0.02, 0.0, 0.0)),
  "actuator_delay": Shift("the hand gets its actions 75 ms late", delay_ticks=6),
  "slippery": Shift("things slip in the fingers", friction=0.25),
  "heavy": Shift("things are four times as heavy", mass=4.0),
  "table_low": Shift("the table and all on it are 2 cm lower", table_m=-0.02),
  "table_high": Shift("the table and all on it are 2 cm higher", table_m=0.02),
  "dim_warm_light": Shift("the light is a little dimmer and warmer", light_rgb=(0.94, 0.88, 0.8)),
}


class MetaWorld(MujocoWorld):
  """A task of MetaWorld under a condition; see `robots.metaworld` for observations and actions."""

  dim = robot.DIM
  cameras = (_FRONT, _WRIST)

  def __init__(self, config: WorldConfig):
    super().__init__(config, CONDITIONS[config.condition], TIME_LIMIT)
    self._env, self._expert = _environment(config.task)
    turn_upright(self.model, _FRONT)
    self._shift.apply(self.model, robot=_ROBOT, table=_TABLE)
    self._env.mocap_low[2] += self._shift.table_m
    self._seen: np.ndarray = self._env.reset()[0]  # MetaWorld's observation, which shows the goal
    self._new = self._notes()

  @property
  def model(self) -> mujoco.MjModel:
    """The environment's model."""
    return self._env.model

  @property
  def data(self) -> mujoco.MjData:
    """Its state."""
    return self._env.data

  def _reset(self, seed: int) -> np.ndarray:
    self._set_notes(self._new)
    mujoco.mj_resetData(self.model, self.data)
    self._env.seed(seed)
    self._env.reset()
    self._raise()
    # The environment moves furniture without working out what follows.
    set_state(self.model, self.data, get_state(self.model, self.data))
    self._env._prev_obs = self._env._get_curr_obs_combined_no_goal()
    self._seen = self._env._get_obs()
    return np.array([0.0, 0.0, 0.0, -1.0], np.float32)

  def _raise(self) -> None:
    """Puts what the environment has placed on the table where the table is now."""
    height_m = self._shift.table_m
    if not height_m:
      return
    furniture = (self.model.body_parentid == 0) & (self.model.body_jntnum == 0)
    furniture[[0, *(self.model.body(name).id for name in (*_ROBOT, *_TABLE))]] = False
    self.model.body_pos[furniture, 2] += height_m
    self.model.site_pos[self.model.site_bodyid == 0, 2] += height_m
    for address in free_things(self.model, _ROBOT):
      self.data.qpos[address + 2] += height_m
    for name in ("_target_pos", "obj_init_pos"):
      place_m = self._env.__dict__[name]
      if _own(place_m) and place_m is not None:
        self._env.__dict__[name] = place_m + (0.0, 0.0, height_m)

  def _tick(self, action_A: np.ndarray) -> bool:
    self._env.curr_path_length = 0  # the clock is ours
    self._seen, _, _, _, info = self._env.step(np.clip(action_A, -1.0, 1.0))
    return bool(info["success"])

  def _act(self) -> np.ndarray:
    with warnings.catch_warnings():  # of actions that are clipped
      warnings.simplefilter("ignore")
      action_A = np.clip(self._expert.get_action(self._seen), -1.0, 1.0)
    return opened_first(action_A, self._seen) if self._config.task in GRASPED else action_A

  def _observation(self, pictures: list[np.ndarray]) -> dict[str, Any]:
    state_P = self._seen[: robot.STATE_DIM].astype(np.float32)
    state_P[: len(self._shift.measured_offset)] += np.asarray(self._shift.measured_offset, np.float32)
    return {"image": dict(zip(robot.CAMERAS, pictures)), "state": state_P, "prompt": PROMPTS[self._config.task]}

  def things(self) -> np.ndarray:
    """Returns float32[9]: where the first thing, the second one (zeros where there is none) and the goal are."""
    return self._seen[_THINGS].astype(np.float32)

  def _notes(self) -> dict[str, Any]:
    attributes = {name: np.array(value) if isinstance(value, np.ndarray) else value
                  for name, value in self._env.__dict__.items()
                  if isinstance(value, (np.ndarray, int, float, str, type(None))) and _own(value)}
    return {"environment": attributes, "body_pos": self.model.body_pos.copy(), "site_pos": self.model.site_pos.copy(),
            "seen": self._seen.copy()}

  def _set_notes(self, notes: dict[str, Any]) -> None:
    self._env.__dict__.update({name: np.array(value) if isinstance(value, np.ndarray) else value
                               for name, value in notes["environment"].items()})
    self.model.body_pos[:], self.model.site_pos[:] = notes["body_pos"], notes["site_pos"]
    self._seen = notes["seen"].copy()


def opened_first(action_A: np.ndarray, seen: np.ndarray) -> np.ndarray:
  """Returns the action of an expert that grasps and takes its fingers to be open, though it may take over.

  With nearly closed fingers it goes no further down before they are open; where it closes them over the thing, it
  rises first. Its own demonstrations are as they were: their fingers are never that closed so far above the thing.

  Args:
    seen: MetaWorld's observation: hand, opening of the fingers from 0 to 1, the thing.
  """
  opening, above_m = seen[3], seen[2] - seen[6]
  grasps = action_A[3] > 0
  if above_m <= _DOWN_M or opening >= (_CLOSING if grasps else _OPEN):
    return action_A
  if grasps:
    return np.array([0.0, 0.0, 1.0, -1.0])
  return np.array([action_A[0], action_A[1], max(action_A[2], 0.0), -1.0])


def _environment(task: str):
  """Returns MetaWorld's environment, which draws its places by seed and shows its goal, and the task's expert."""
  from metaworld.env_dict import ENV_CLS_MAP
  from metaworld.policies import ENV_POLICY_MAP

  env = ENV_CLS_MAP[task]()
  env.seeded_rand_vec, env._freeze_rand_vec, env._set_task_called, env._partially_observable = True, False, True, False
  del env.sawyer_observation_space  # worked out anew, with the goal
  return env, ENV_POLICY_MAP[task]()


def _own(value: Any) -> bool:
  """Returns whether a value is the environment's: some of its arrays are windows on the simulation's state."""
  while isinstance(value, np.ndarray) and value.base is not None:
    value = value.base
  return value is None or isinstance(value, (np.ndarray, np.generic, int, float, str))


def require(task: str, condition: str) -> None:
  """Raises Pi0RagError where MetaWorld or OpenGL is missing."""
  del task, condition
  if importlib.util.find_spec("metaworld") is None:
    raise Pi0RagError("world 'metaworld' needs MetaWorld, which pins an older MuJoCo and works with ours: "
                      "pip install --no-deps metaworld==3.1.1")
  require_opengl()


FAMILY = Family(
  robot="metaworld", tasks=tuple(PROMPTS), conditions={name: shift.description for name, shift in CONDITIONS.items()},
  make=MetaWorld, require=require, time_limit=lambda task: TIME_LIMIT, abilities=(REWINDS, EXPERT, FILMS, TELLS))
