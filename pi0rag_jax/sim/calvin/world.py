"""The play table as a world; see `robots.panda` for observations and actions.

A task's episode has 360 ticks. `chain` asks for five tasks one after the other, each within 360 ticks, on a table that
nobody tidies between them: what is asked for changes as soon as a task is done.
"""

from typing import Any

import mujoco
import numpy as np

from pi0rag_jax.robots import panda as robot
from pi0rag_jax.sim import render
from pi0rag_jax.sim.calvin import expert, oracle, scene, symbols
from pi0rag_jax.sim.calvin.arrangement import arrange
from pi0rag_jax.sim.calvin.conditions import CONDITIONS
from pi0rag_jax.sim.calvin.oracle import Facts
from pi0rag_jax.sim.calvin.physics import Led, Physics
from pi0rag_jax.sim.calvin.table import TABLES
from pi0rag_jax.sim.controller import ControllerState
from pi0rag_jax.sim.render import RaycastRenderer
from pi0rag_jax.worlds.mujoco_world import MujocoWorld
from pi0rag_jax.worlds.world import EXPERT, FILMS, REWINDS, TELLS, Family, WorldConfig

RENDERER = render.RaycastRenderer.name
CHAIN = "chain"
TIME_LIMIT = 360  # CALVIN's, of a task
TASKS = (*symbols.TASKS, CHAIN)


class PlayTable(MujocoWorld):
  """A task or chains at the play table under a condition."""

  dim, cameras = robot.DIM, robot.CAMERAS

  def __init__(self, config: WorldConfig):
    setting = CONDITIONS[config.condition]
    super().__init__(config, setting.shift, TIME_LIMIT)
    table = TABLES[setting.table]
    model = scene.build_model(table)
    self._shift.apply(model, robot=("link0",), table=())
    self._physics = Physics(model, table)
    self._tasks: tuple[str, ...] = ()  # of the episode, in order
    self._done, self._start = 0, None  # tasks done, and the facts when the present one began
    self._told = False  # something else in the last tick
    self._renderers: dict[int, RaycastRenderer] = {}  # by size

  @property
  def model(self) -> mujoco.MjModel:
    """Robot and table."""
    return self._physics.model

  @property
  def data(self) -> mujoco.MjData:
    """Their state."""
    return self._physics.data

  @property
  def task(self) -> str:
    """What is asked for now; of an episode that is over, what was last."""
    return self._tasks[min(self._done, len(self._tasks) - 1)]

  def things(self) -> np.ndarray:
    """Returns float32[6]: where the thing is that the task is about now, and where it belongs."""
    return expert.target(self.task, self._began, self._physics)

  def film(self, size: int) -> np.ndarray:
    """Returns the base camera's picture uint8[size, size, 3]."""
    return self._take(self.cameras[:1], size)[0]

  @property
  def _began(self) -> Facts:
    assert self._start is not None, "an episode begins with facts"
    return self._start

  def _reset(self, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if self._config.task == CHAIN:
      state, self._tasks = symbols.draw_chain(seed)
    else:
      state, self._tasks = symbols.draw_start(self._config.task, rng), (self._config.task,)
    arrange(self._physics, state, rng)
    self._done, self._start, self._told = 0, Facts.of(self._physics), False
    return np.array([0.0, 0.0, 0.0, 0.0, float(self._physics.controller.state.gripper_open)], np.float32)

  def _tick(self, action_A: np.ndarray) -> bool:
    self._physics.tick(np.asarray(action_A, np.float64))
    self._told = False
    now = Facts.of(self._physics)
    if self._done < len(self._tasks) and oracle.achieved(self.task, self._began, now):
      self._done += 1
      if self._done < len(self._tasks):
        self._start, self._told = now, True
        self._deadline = self._ticks + 1 + TIME_LIMIT
    return self._done == len(self._tasks)

  def _interrupts(self) -> bool:
    return self._told

  def _stages(self) -> int | None:
    return self._done if self._config.task == CHAIN else None

  def _act(self) -> np.ndarray:
    return expert.act(self.task, self._began, self._physics)

  def _observation(self, pictures: list[np.ndarray]) -> dict[str, Any]:
    physics = self._physics
    (place_3, yaw), told = physics.tool_pose(), physics.controller.state
    lag_3 = np.subtract(told.pose[:3], place_3)
    state_P = [*place_3, np.sin(yaw), np.cos(yaw), physics.gripper_width(), told.gripper_open, *lag_3]
    return {"image": dict(zip(robot.CAMERAS, pictures)), "state": np.array(state_P, np.float32),
            "prompt": symbols.TASKS[self.task].prompt}

  def _notes(self) -> dict[str, Any]:
    told, led = self._physics.controller.state, self._physics.led
    return {"tasks": list(self._tasks), "done": self._done, "told": self._told, "start": self._began.plain(),
            "led": [led.on, led.pressed], "controller": [list(told.pose), list(told.q), told.gripper_open,
                                                        list(told.applied_q)]}

  def _set_notes(self, notes: dict[str, Any]) -> None:
    pose, q, gripper_open, applied_q = notes["controller"]
    self._tasks, self._done, self._told = tuple(notes["tasks"]), int(notes["done"]), bool(notes["told"])
    self._start = Facts.read(notes["start"])
    self._physics.led = Led(*map(bool, notes["led"]))
    self._physics.controller.state = ControllerState(tuple(pose), tuple(q), bool(gripper_open), tuple(applied_q))

  def _take(self, cameras: tuple[str, ...], size: int) -> list[np.ndarray]:
    """Returns pictures by the ray-caster, which needs no OpenGL."""
    self._physics.show_lights()
    if size not in self._renderers:
      self._renderers[size] = RaycastRenderer(self.model, size, robot.CAMERAS)
    return list(self._renderers[size].render(self.data, cameras).values())


def asks(task: str, seed: int) -> tuple[str, ...]:
  """Returns the tasks of an episode, in order."""
  return symbols.draw_chain(seed)[1] if task == CHAIN else (task,)


FAMILY = Family(
  robot="panda", tasks=TASKS, conditions={name: setting.shift.description for name, setting in CONDITIONS.items()},
  make=PlayTable, time_limit=lambda task: TIME_LIMIT * (symbols.LENGTH if task == CHAIN else 1),
  renderers=lambda: (RENDERER,), abilities=(REWINDS, EXPERT, FILMS, TELLS), asks=asks)
