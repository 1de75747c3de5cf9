"""LIBERO by openpi's protocol, with LIBERO-PRO's variants and shifts of our own as conditions.

openpi runs 50 trials a task, each from one of the 50 states that LIBERO ships: evaluation seeds are those trials
(200000 is the first, 200049 the last, 200050 the first again, the same to the bit). All other seeds draw their places
from LIBERO's own samplers, so that nothing is learnt from the states that are evaluated. `options={"starts": "listed"}`
takes the states for all seeds (the seed modulo their number), `{"starts": "sampled"}` for none.

A trial begins after 10 ticks at rest. Both pictures are turned by 180 degrees of what OpenGL delivers, which are
upright ones with left and right exchanged, as all LIBERO data sets have them. openpi's observation is 2 ms older than
the tick's end, at which ours is made. The renderer '' draws shadows, reflections and soft edges as LIBERO does, 'plain'
none of them.
"""

from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from pi0rag_jax.errors import unknown_name
from pi0rag_jax.robots import libero as robot
from pi0rag_jax.worlds import libero_tasks
from pi0rag_jax.worlds.libero_expert import LiberoExpert, unknown
from pi0rag_jax.worlds.libero_scene import REST, Scene, goals, language, require_package, scene_files
from pi0rag_jax.worlds.mujoco_model import NOTHING, Pictures, Shift, require_opengl, turned
from pi0rag_jax.worlds.mujoco_world import MujocoWorld
from pi0rag_jax.worlds.world import EVALUATION_SEEDS, EXPERT, FILMS, NOMINAL, REWINDS, TELLS, Family, WorldConfig

PICTURE_PX = 256
STARTS = ("by_seed", "listed", "sampled")
RENDERERS = ("", "plain")
_FRONT, _WRIST = "agentview", "robot0_eye_in_hand"  # of the model's cameras
_COLLISION_GROUP = 0  # of geoms; robosuite draws the others


SHIFTS = {
  NOMINAL: NOTHING,
  "camera_shift": Shift("both cameras were knocked: at 64 px the picture moves by a pixel or two",
                        turned(**{_FRONT: (0.012, 0.012), _WRIST: (0.022, -0.022)})),
  "camera_shift_double": Shift("both cameras were knocked twice as far",
                               turned(**{_FRONT: (0.024, 0.024), _WRIST: (0.044, -0.044)})),
  "wrist_camera_turn": Shift("the wrist camera was turned in its mount by two degrees about two axes",
                             turned(**{_WRIST: (-0.035, 0.035)})),
  "actuator_delay": Shift("the arm gets its actions 0.15 s late", delay_ticks=3),
  "slippery": Shift("things slip in the fingers", friction=0.25),
  "heavy": Shift("things are four times as heavy", mass=4.0),
  "dim_warm_light": Shift("the light is a little dimmer and warmer", light_rgb=(0.94, 0.88, 0.8)),
}
_MOVED = {f"temp_{axis}0.{tenths}": f"libero_object: the thing starts {tenths} dm further along {axis}"
          for axis in "xy" for tenths in range(1, 6)}
# LIBERO-PRO's, by the package's names; not every suite has every one. Those with sticks, boxes and a green mug need
# shapes that the package lacks.
VARIANTS = {
  "lan": "LIBERO-PRO: the task is said in other words",
  "object": "LIBERO-PRO: things look different",
  "swap": "LIBERO-PRO: things have exchanged places",
  "task": "LIBERO-PRO: another task in the same scene, said so",
  "with_milk": "LIBERO-PRO: a carton of milk stands about",
  "with_mug": "LIBERO-PRO: a mug stands about",
  "with_yellow_book": "LIBERO-PRO: a yellow book lies about",
  **_MOVED,
}
CONDITIONS = {**{name: shift.description for name, shift in SHIFTS.items()}, **VARIANTS}
_DOORS = ("cabinet", "microwave")  # furniture whose places may be shut
_RETOLD = ("lan", "task")  # whose scenes say the prompt; elsewhere it is the task's name, as in openpi


class LiberoWorld(MujocoWorld):
  """A task of LIBERO under a condition; see `robots.libero` for observations and actions."""

  dim = robot.DIM
  cameras = (_FRONT, _WRIST)

  def __init__(self, config: WorldConfig):
    if config.renderer not in RENDERERS:
      raise unknown_name("renderer of LIBERO", config.renderer, RENDERERS)
    self._starts = config.options.get("starts", STARTS[0])
    if self._starts not in STARTS:
      raise unknown_name("kind of starts", str(self._starts), STARTS)
    (suite, name), variant = libero_tasks.find(config.task), _variant(config.condition)
    scene, starts = scene_files(suite, name, variant)
    super().__init__(config, SHIFTS.get(config.condition, NOTHING), libero_tasks.TIME_LIMITS[suite])
    self.prompt = language(scene) if variant in _RETOLD else libero_tasks.bare(name).replace("_", " ")
    self.scene = Scene(Path(scene), Path(starts))
    self._shift.apply(self.model, robot=(self.scene.arm.robot_model.root_body,), table=())
    self._expert = LiberoExpert(self.scene, self._shift.delay_ticks)

  @property
  def model(self) -> mujoco.MjModel:
    """The scene's model."""
    return self.scene.model

  @property
  def data(self) -> mujoco.MjData:
    """Its state."""
    return self.scene.data

  def restore(self, snapshot: dict[str, Any], *, fresh_clock: bool = False) -> None:
    """Continues from there."""
    super().restore(snapshot, fresh_clock=fresh_clock)
    self.scene.show_states()

  def observe(self) -> dict[str, Any]:
    """Returns the observation with fresh pictures, 256 px."""
    front, wrist = (picture[:, ::-1].copy() for picture in self._looks().take(self.data, self.cameras, PICTURE_PX))
    return {"observation/image": front, "observation/wrist_image": wrist, "observation/state": self.scene.measure(),
            "prompt": self.prompt}

  def things(self) -> np.ndarray:
    """Returns float32[3]: where the thing is that is to be moved next."""
    return self._expert.thing().astype(np.float32)

  def _reset(self, seed: int) -> np.ndarray:
    listed = self._starts == "listed" or (self._starts == "by_seed" and seed in EVALUATION_SEEDS)
    (self.scene.start_listed if listed else self.scene.start_sampled)(seed)
    return REST

  def _tick(self, action_A: np.ndarray) -> bool:
    return self.scene.tick(action_A)

  def _act(self) -> np.ndarray:
    return self._expert.act()

  def _notes(self) -> dict[str, Any]:
    return self.scene.notes()

  def _set_notes(self, notes: dict[str, Any]) -> None:
    self.scene.set_notes(notes)

  def _looks(self) -> Pictures:
    if self._pictures is None:
      self._pictures = Pictures(self.model, hidden=(_COLLISION_GROUP,), effects=not self._config.renderer)
    return self._pictures


def _variant(condition: str) -> str:
  return condition if condition in VARIANTS else ""


def require(task: str, condition: str) -> None:
  """Raises Pi0RagError where LIBERO or OpenGL is missing, and for a variant that the task's suite does not have."""
  require_package()
  require_opengl()
  scene_files(*libero_tasks.find(task), _variant(condition))


def no_expert(task: str, condition: str) -> str:
  """Returns why a task has no expert, or ''."""
  (suite, name), variant = libero_tasks.find(task), _variant(condition)
  wanted, opened = goals(scene_files(suite, name, variant)[0])
  shut = [goal for goal in wanted if any(place in goal[-1] for place in _DOORS) and goal[-1].endswith("_region")
          and not {goal[-1], goal[-1].rsplit("_", 2)[0]} & opened]
  if why := unknown(wanted):
    return why
  return f"LIBERO's expert cannot reach '{' '.join(shut[0])}': it opens nothing that is shut" if shut else ""


FAMILY = Family(
  robot="libero", tasks=libero_tasks.TASKS, conditions=CONDITIONS, make=LiberoWorld, require=require,
  time_limit=lambda task: libero_tasks.TIME_LIMITS[libero_tasks.find(task)[0]], renderers=lambda: RENDERERS,
  abilities=(REWINDS, EXPERT, FILMS, TELLS), no_expert=no_expert, options=("starts",))
