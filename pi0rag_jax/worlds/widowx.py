"""SimplerEnv's tasks of a WidowX on a MuJoCo model of the arm, with an expert: hand displacements at 5 Hz.

A task is done as SimplerEnv says (`widowx_tasks`); it is partly done once the thing was held by both fingers, above
where it lay. `simple` and `unseen_*` are the settings of RoboVLMs' tables (arXiv 2412.14058).
"""

import dataclasses
from typing import Any

import mujoco
import numpy as np

from pi0rag_jax.robots import widowx as robot
from pi0rag_jax.worlds import widowx_arm as arm
from pi0rag_jax.worlds.mujoco_model import NOTHING, Shift, get_state, require_opengl, set_state, turned, work_out
from pi0rag_jax.worlds.mujoco_world import MujocoWorld
from pi0rag_jax.worlds.rotations import rotation, rotation_vector
from pi0rag_jax.worlds.widowx_expert import Expert
from pi0rag_jax.worlds.widowx_tasks import DISTRACTORS, TASKS, Thing, arrange, is_over
from pi0rag_jax.worlds.world import EXPERT, FILMS, NOMINAL, REWINDS, TELLS, Family, WorldConfig

_SMOOTH = 10  # pieces of a tick, in which the joints' targets move on
_LIFTED_M = 0.01
_WOOD, _GREY, _CLOTH = (0.62, 0.5, 0.36), (0.45, 0.47, 0.5), (0.75, 0.3, 0.35)


@dataclasses.dataclass(frozen=True)
class Setting:
  """A condition: what differs from the demonstrations."""

  shift: Shift
  table_rgb: tuple[float, float, float] = _WOOD
  checkered: bool = False
  distractors: bool = False
  unseen: bool = False  # another thing than the task's own is moved


def _shifted(description: str, **changes: Any) -> Setting:
  return Setting(Shift(description, **changes))


CONDITIONS = {
  NOMINAL: Setting(NOTHING),
  "simple": _shifted("the setting of the demonstrations, by its name in RoboVLMs' tables"),
  "unseen_distractor": Setting(Shift("a can and a ball stand between the things"), distractors=True),
  "unseen_background": Setting(Shift("a checkered red cloth covers the table"), table_rgb=_CLOTH, checkered=True),
  "unseen_target": Setting(Shift("another thing is moved, which the prompt names"), unseen=True),
  "grey_table": Setting(Shift("the table is grey"), table_rgb=_GREY),
  "dim_warm_light": _shifted("the light is dimmer and warmer", light_rgb=(0.75, 0.68, 0.58)),
  "bright_light": _shifted("the light is much brighter", light_rgb=(1.4, 1.4, 1.4)),
  "camera_shift": _shifted("both cameras were knocked: the picture moves by two pixels",
                           cameras=turned(**{arm.FRONT: (0.023, 0.023), arm.WRIST: (0.047, -0.047)})),
  "hand_offset": _shifted("the hand is measured 2 cm to the side of where it is", measured_offset=(0.0, 0.02)),
  "actuator_delay": _shifted("the arm gets its actions 0.2 s late", delay_ticks=1),
  "slippery": _shifted("things slip in the fingers", friction=0.4),
  "heavy": _shifted("things are four times as heavy", mass=4.0),
}


class WidowX(MujocoWorld):
  """A task of the WidowX under a condition; see `robots.widowx` for observations and actions."""

  dim = robot.DIM
  cameras = (arm.FRONT, arm.WRIST)

  def __init__(self, config: WorldConfig):
    setting, self._task = CONDITIONS[config.condition], TASKS[config.task]
    super().__init__(config, setting.shift, self._task.time_limit)
    self._thing = self._task.unseen if setting.unseen else self._task.thing
    self._distractors = DISTRACTORS if setting.distractors else ()
    self._model = arm.model((self._thing, self._task.target, *self._distractors), table_rgb=setting.table_rgb,
                            checkered=setting.checkered)
    self._shift.apply(self._model, robot=arm.ROBOT, table=(arm.TABLE,))
    self._data, self._hand = mujoco.MjData(self._model), arm.Hand(self._model)
    self._expert = Expert(self._model, self._hand, self._task, self._thing)
    self._home_6 = self._hand.home()
    self._body, self._target = (self._model.body(thing.name).id for thing in (self._thing, self._task.target))
    self._lifted = False

  @property
  def model(self) -> mujoco.MjModel:
    """The arm, the table and the things."""
    return self._model

  @property
  def data(self) -> mujoco.MjData:
    """Its state."""
    return self._data

  def things(self) -> np.ndarray:
    """Returns where the thing and the target are, float32[6]."""
    return np.concatenate([self._data.xpos[self._body], self._data.xpos[self._target]], dtype=np.float32)

  def _reset(self, seed: int) -> np.ndarray:
    mujoco.mj_resetData(self._model, self._data)
    self._data.qpos[self._hand.qpos] = self._data.ctrl[:6] = self._home_6
    self._data.qpos[self._hand.fingers] = self._data.ctrl[6] = arm.STROKE_M
    places = arrange(self._task, seed)
    self._place(self._thing, places.thing)
    self._place(self._task.target, places.target)
    for thing, place in zip(self._distractors, places.free):
      self._place(thing, (*place, 0.0))
    set_state(self._model, self._data, get_state(self._model, self._data))
    self._lifted = False
    return np.array([0.0] * 6 + [1.0], np.float32)

  def _place(self, thing: Thing, place: tuple[float, float, float]) -> None:
    """Puts a thing on the table: x, y, turn."""
    x, y, turn = place
    pose_7 = np.array([x, y, thing.half[2], np.cos(turn / 2), 0.0, 0.0, np.sin(turn / 2)])
    body = self._model.body(thing.name)
    if thing.loose:
      start = int(self._model.jnt_qposadr[body.jntadr[0]])
      self._data.qpos[start:start + 7] = pose_7
    else:
      self._data.mocap_pos[body.mocapid[0]], self._data.mocap_quat[body.mocapid[0]] = pose_7[:3], pose_7[3:]

  def _tick(self, action_A: np.ndarray) -> bool:
    action_A = np.clip(action_A, robot.ACTIONS.low, robot.ACTIONS.high)
    before_6 = self._data.ctrl[:6].copy()
    place_3, turn_33 = self._hand.pose(before_6)
    place_3 = np.clip(place_3 + action_A[:3], arm.LOW_M, arm.HIGH_M)
    after_6 = self._hand.joints(place_3, rotation(action_A[3:6]) @ turn_33, before_6)
    self._data.ctrl[6] = action_A[6] * arm.STROKE_M
    steps = round(robot.TICK_S / self._model.opt.timestep / _SMOOTH)
    for piece in range(1, _SMOOTH + 1):
      self._data.ctrl[:6] = before_6 + (after_6 - before_6) * piece / _SMOOTH
      mujoco.mj_step(self._model, self._data, steps)
    work_out(self._model, self._data)
    self._lifted |= self._is_lifted()
    return self._is_done()

  def _partial(self) -> bool:
    return self._lifted

  def _is_lifted(self) -> bool:
    return bool(self._expert.holds(self._data) and self._data.xpos[self._body][2] > self._thing.half[2] + _LIFTED_M)

  def _is_done(self) -> bool:
    """Returns whether the thing is where it belongs and touches nothing but what it was put on."""
    bodies = self._model.geom_bodyid[self._data.contact.geom[: self._data.ncon]]
    touched = set(bodies[(bodies == self._body).any(axis=1)].ravel().tolist()) - {self._body}
    off_3 = self._data.xpos[self._body] - self._data.xpos[self._target]
    return touched == {self._target} and is_over(self._task, self._thing, off_3)

  def _act(self) -> np.ndarray:
    return self._expert.act(self._data)

  def _observation(self, pictures: list[np.ndarray]) -> dict[str, Any]:
    place_3, turn_33 = self._hand.pose(self._data.qpos[self._hand.qpos])
    opening = float(self._data.qpos[self._hand.fingers].mean()) / arm.STROKE_M
    state_P = np.array([*place_3, *rotation_vector(turn_33 @ arm.pointing_down().T), opening], np.float32)
    state_P[: len(self._shift.measured_offset)] += np.asarray(self._shift.measured_offset, np.float32)
    return {"image": dict(zip(robot.CAMERAS, pictures)), "state": state_P,
            "prompt": self._task.prompt.format(self._thing.name)}

  def _notes(self) -> dict[str, Any]:
    return {"lifted": self._lifted}

  def _set_notes(self, notes: dict[str, Any]) -> None:
    self._lifted = bool(notes["lifted"])


def require(task: str, condition: str) -> None:
  """Raises Pi0RagError where the arm's model or OpenGL is missing."""
  del task, condition
  arm.assets()
  require_opengl()


FAMILY = Family(
  robot="widowx", tasks=tuple(TASKS), conditions={name: found.shift.description for name, found in CONDITIONS.items()},
  make=WidowX, require=require, time_limit=lambda task: TASKS[task].time_limit,
  abilities=(REWINDS, EXPERT, FILMS, TELLS))
