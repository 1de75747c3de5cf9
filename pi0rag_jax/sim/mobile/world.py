"""The mobile manipulator's flat as a world; see `robots.mobile` for observations and actions."""

import dataclasses
import math
from typing import Any

import mujoco
import numpy as np

from pi0rag_jax.data.mobile_vla import SHARES
from pi0rag_jax.robots import mobile as robot
from pi0rag_jax.sim import render
from pi0rag_jax.sim.mobile import expert, flat, scene, tasks
from pi0rag_jax.sim.mobile.conditions import CONDITIONS
from pi0rag_jax.sim.mobile.physics import Physics
from pi0rag_jax.sim.mobile.tasks import Errand
from pi0rag_jax.sim.render import RaycastRenderer
from pi0rag_jax.worlds.mujoco_world import MujocoWorld
from pi0rag_jax.worlds.world import EXPERT, FILMS, REWINDS, TELLS, Family, WorldConfig

RENDERER = render.RaycastRenderer.name
_SEEN_M = 1.5  # further away than this, only the direction is told


class MobileWorld(MujocoWorld):
  """A task in the flat under a condition."""

  dim = robot.DIM

  def __init__(self, config: WorldConfig):
    self._task = tasks.get_task(config.task)
    shift = CONDITIONS[config.condition]
    super().__init__(config, shift, self._task.time_limit)
    model = scene.build_model(shift.table_out_m)
    shift.apply(model, robot=(scene.BASE,), table=[table.name for table in flat.TABLES.values()])
    self._physics = Physics(model, wheels=shift.wheels, drift=shift.drift)
    self._errand = Errand(self._task.kind, "")
    self._renderers: dict[int, RaycastRenderer] = {}  # by size

  @property
  def model(self) -> mujoco.MjModel:
    """The flat's model."""
    return self._physics.model

  @property
  def data(self) -> mujoco.MjData:
    """Its state."""
    return self._physics.data

  def things(self) -> np.ndarray:
    """Returns float32[3]: what the errand is about now, ahead and to the left of the base, and its height."""
    place_2, height = tasks.target(self._errand, self._physics)
    seen_2 = self._physics.in_base(place_2)
    seen_2 *= min(1.0, _SEEN_M / max(math.hypot(*seen_2), 1e-6))
    return np.array([*seen_2, height], np.float32)

  def film(self, size: int) -> np.ndarray:
    """Returns the ceiling camera's picture of the room that the base is in, uint8[size, size, 3]."""
    return self._look(size, (scene.CEILING_CAMERAS[self._physics.room],))[0]

  def _reset(self, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    self._errand = tasks.draw_errand(self._task, rng)
    tasks.lay_out(self._task, self._errand, self._physics, rng)
    self._physics.settle()
    return np.array([0.0, 0.0, self._physics.lift, self._physics.reach, 0.0 if self._task.holding else 1.0], np.float32)

  def _tick(self, action_A: np.ndarray) -> bool:
    self._physics.tick(np.clip(action_A, robot.ACTIONS.low, robot.ACTIONS.high))
    return tasks.succeeded(self._errand, self._physics)

  def _act(self) -> np.ndarray:
    return expert.act(self._errand, self._physics)

  def observe(self) -> dict[str, Any]:
    """Returns the observation with fresh pictures."""
    cameras = (scene.FRONT_CAMERA, scene.GRIPPER_CAMERA, scene.CEILING_CAMERAS[self._physics.room])
    physics, pictures = self._physics, self._look(self._config.image_size, cameras)
    state_P = np.array([*physics.base, math.cos(physics.yaw), math.sin(physics.yaw), physics.lift, physics.reach,
                        physics.opening], np.float32)
    return {"image": dict(zip(robot.CAMERAS, pictures)), "state": state_P, "prompt": self._errand.prompt}

  def _notes(self) -> dict[str, Any]:
    return dataclasses.asdict(self._errand)

  def _set_notes(self, notes: dict[str, Any]) -> None:
    self._errand = Errand(**notes)

  def _look(self, size: int, cameras: tuple[str, ...]) -> list[np.ndarray]:
    """Returns pictures by the ray-caster, which needs no OpenGL."""
    if size not in self._renderers:
      self._renderers[size] = RaycastRenderer(self.model, size, scene.CAMERAS)
    return list(self._renderers[size].render(self.data, cameras).values())


FAMILY = Family(
  robot="mobile", tasks=tuple(tasks.TASKS), conditions={name: shift.description for name, shift in CONDITIONS.items()},
  make=MobileWorld, time_limit=lambda task: tasks.get_task(task).time_limit, renderers=lambda: (RENDERER,),
  abilities=(REWINDS, EXPERT, FILMS, TELLS), categories={name: task.category for name, task in tasks.TASKS.items()},
  shares=SHARES)
