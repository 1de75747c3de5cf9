"""FrankaKitchen with an expert: joint velocities of a Franka, 280 ticks of 80 ms.

Physics, goals and starts are the package's (FrankaKitchen-v1); `chain` asks for four tasks in one episode, as D4RL's
"complete" does, each counted only once those before it are done.
"""

import itertools
from typing import Any

import mujoco
import numpy as np

from pi0rag_jax.robots import kitchen as robot
from pi0rag_jax.worlds import kitchen_scene as scene
from pi0rag_jax.worlds.kitchen_expert import Expert
from pi0rag_jax.worlds.mujoco_model import NOTHING, Shift, require_opengl, turned, work_out
from pi0rag_jax.worlds.mujoco_world import MujocoWorld
from pi0rag_jax.worlds.world import EXPERT, FILMS, NOMINAL, REWINDS, TELLS, Family, WorldConfig

CHAIN = "chain"
TIME_LIMIT = 280
TASKS = (*scene.TASKS, CHAIN)
SCATTERED = "scattered"
_SCATTERED_RAD, _SCATTERED_M = 0.1, 0.02  # at most

CONDITIONS = {
  NOMINAL: NOTHING,
  SCATTERED: Shift("arm and kettle start elsewhere in every episode, and earlier tasks of the chain may be done"),
  "camera_shift": Shift("both cameras were knocked: the picture moves by two pixels",
                        turned(**{scene.FRONT: (0.025, 0.025), scene.WRIST: (0.045, -0.045)})),
  "joint_offset": Shift("the first joint is measured 0.05 rad beside where it is", measured_offset=(0.05,)),
  "actuator_delay": Shift("the robot gets its actions 0.16 s late", delay_ticks=2),
  "slippery": Shift("fingers and what moves slip", friction=0.4),
  "heavy": Shift("doors, knobs and the kettle are twice as heavy", mass=2.0),
  "dim_warm_light": Shift("the light is dimmer and warmer", light_rgb=(0.75, 0.68, 0.58)),
}


class Kitchen(MujocoWorld):
  """A task of the kitchen, or four in a row, under a condition; see `robots.kitchen` for observations and actions."""

  dim, cameras = robot.DIM, (scene.FRONT, scene.WRIST)

  def __init__(self, config: WorldConfig):
    super().__init__(config, CONDITIONS[config.condition], TIME_LIMIT)
    self._model = scene.model()
    self._shift.apply(self._model, robot=scene.ROBOT, table=())
    self._data = mujoco.MjData(self._model)
    self._expert = Expert(self._model)
    self._tasks, self._done, self._told = asks(config.task, 0), 0, False
    self._seed, self._measured = 0, np.zeros(robot.STATE_DIM)

  @property
  def model(self) -> mujoco.MjModel:
    """Robot and kitchen."""
    return self._model

  @property
  def data(self) -> mujoco.MjData:
    """Their state."""
    return self._data

  @property
  def task(self) -> str:
    """What is asked for now; of an episode that is over, what was last."""
    return self._tasks[min(self._done, len(self._tasks) - 1)]

  def things(self) -> np.ndarray:
    """Returns float32[3]: where the handle or the knob is that the task is about now."""
    return self._data.site(scene.TASKS[self.task].site).xpos.astype(np.float32)

  def _reset(self, seed: int) -> np.ndarray:
    mujoco.mj_resetData(self._model, self._data)
    self._data.qpos[:] = scene.START
    self._seed, self._done, self._told = seed, 0, False
    if self._config.condition == SCATTERED:
      self._scatter(np.random.default_rng(seed))
    work_out(self._model, self._data)
    self._measure()
    return np.zeros(robot.DIM, np.float32)

  def _scatter(self, rng: np.random.Generator) -> None:
    """Moves arm and kettle, and has each task that precedes in the chain done half of the times."""
    self._data.qpos[scene.ARM] += rng.uniform(-_SCATTERED_RAD, _SCATTERED_RAD, 7)
    self._data.joint(scene.KETTLE).qpos[:2] += rng.uniform(-_SCATTERED_M, _SCATTERED_M, 2)
    for name in itertools.takewhile(lambda name: name != self.task, scene.IN_A_ROW):
      if rng.random() < 0.5:
        self._data.qpos[list(scene.TASKS[name].entries)] = scene.TASKS[name].goal

  def _measure(self) -> None:
    """Measures the robot, with noise; where its joints are sent depends on that, as in the package."""
    rng = np.random.default_rng((self._seed, round(self._data.time / robot.TICK_S)))
    exact_P = np.concatenate([self._data.qpos[:robot.DIM], self._data.qvel[:robot.DIM]])
    self._measured = exact_P + scene.NOISE_RAD * rng.uniform(-1.0, 1.0, robot.STATE_DIM)

  def _tick(self, action_A: np.ndarray) -> bool:
    self._data.ctrl[:] = scene.target(self._measured[:robot.DIM], np.asarray(action_A, float))
    mujoco.mj_step(self._model, self._data, scene.STEPS)
    work_out(self._model, self._data)
    self._measure()
    before = self._done
    while self._done < len(self._tasks) and scene.TASKS[self.task].is_done(self._data.qpos):
      self._done += 1
    self._told = before < self._done < len(self._tasks)
    return self._done == len(self._tasks)

  def _interrupts(self) -> bool:
    return self._told

  def _stages(self) -> int | None:
    return self._done if self._config.task == CHAIN else None

  def _act(self) -> np.ndarray:
    return self._expert.act(self.task, self._data)

  def _observation(self, pictures: list[np.ndarray]) -> dict[str, Any]:
    state_P = self._measured.astype(np.float32)
    state_P[: len(self._shift.measured_offset)] += np.asarray(self._shift.measured_offset, np.float32)
    return {"image": dict(zip(robot.CAMERAS, pictures)), "state": state_P, "prompt": scene.TASKS[self.task].prompt}

  def _notes(self) -> dict[str, Any]:
    return {"seed": self._seed, "measured": self._measured.copy(), "done": self._done, "told": self._told}

  def _set_notes(self, notes: dict[str, Any]) -> None:
    self._seed, self._done, self._told = int(notes["seed"]), int(notes["done"]), bool(notes["told"])
    self._measured = np.array(notes["measured"])


def asks(task: str, seed: int) -> tuple[str, ...]:
  """Returns the tasks of an episode, in order."""
  del seed
  return scene.IN_A_ROW if task == CHAIN else (task,)


def require(task: str, condition: str) -> None:
  """Raises Pi0RagError where the kitchen's package or OpenGL is missing."""
  del task, condition
  scene.assets()
  require_opengl()


FAMILY = Family(
  robot="kitchen", tasks=TASKS, conditions={name: shift.description for name, shift in CONDITIONS.items()},
  make=Kitchen, require=require, time_limit=lambda task: TIME_LIMIT, abilities=(REWINDS, EXPERT, FILMS, TELLS),
  asks=asks)
