"""The simulated Panda as a world, with every ability."""

from typing import Any

import numpy as np

from pi0rag_jax.sim import render
from pi0rag_jax.sim.conditions import CONDITIONS
from pi0rag_jax.sim.env import PandaEnv
from pi0rag_jax.sim.experts import get_expert
from pi0rag_jax.sim.render import Renderer, make_renderer
from pi0rag_jax.sim.tasks import TASKS, get_task
from pi0rag_jax.sim.truth import Witness
from pi0rag_jax.worlds.world import ABILITIES, Family, Progress, WorldConfig

DEFAULT_RENDERER = "raycast"


class PandaWorld:
  """A task on the simulated Panda; see `sim.env.PandaEnv` for observations and actions.

  Sensors are what its hardware measures: forces of contact, the gripper, the commanded and the measured tool.
  """

  def __init__(self, config: WorldConfig):
    self.env = PandaEnv(config.task, config.condition, renderer=config.renderer or DEFAULT_RENDERER,
                        image_size=config.image_size)
    self._config = config
    self._films: dict[int, Renderer] = {}  # by size

  def begin(self, seed: int) -> None:
    """Starts the episode of a seed."""
    self.env.begin(seed=seed)

  def advance(self, actions_NA: np.ndarray) -> Progress:
    """Executes actions float[N, 5], one a tick."""
    witness = Witness(self.env.physics) if self._config.witness else None
    sensors, truths = [], []
    success, done, fault = False, False, None
    for action_A in self.env.checked(actions_NA).tolist():
      success, done, fault = self.env.tick(action_A)
      sensors.append(self.env.signals())
      if witness is not None:
        truths.append(witness.look())
      if done:
        break
    return Progress(self.env.ticks, success, done, sensors, truths, fault or "")

  def observe(self) -> dict[str, Any]:
    """Returns the observation with fresh pictures."""
    return self.env.observe()

  def snapshot(self) -> dict[str, Any]:
    """Returns what `restore` needs."""
    return self.env.snapshot()

  def restore(self, snapshot: dict[str, Any], *, fresh_clock: bool = False) -> None:
    """Continues from there."""
    self.env.restore(snapshot)
    if fresh_clock:
      self.env.ticks, self.env.deadline = 0, self.env.task.time_limit

  def plan(self, horizon: int) -> np.ndarray:
    """Returns what the expert would execute from here on, float32[horizon, 5]."""
    return get_expert(self.env.task.name).plan(self.env, horizon)

  def more_time(self) -> None:
    """Has the whole time limit ahead again."""
    self.env.deadline = self.env.ticks + self.env.task.time_limit

  def things(self) -> np.ndarray:
    """Returns float32[5]: where the thing to reach for is, and where it belongs on the table."""
    known = self.env.info()["privileged"]
    return np.concatenate([known["target_position"], known["goal_position"]], dtype=np.float32)

  def film(self, size: int) -> np.ndarray:
    """Returns the base camera's picture uint8[size, size, 3]."""
    if size not in self._films:
      self._films[size] = make_renderer(self.env.renderer_name, self.env.physics.model, size)
    return self._films[size].render(self.env.physics.data)["base_0_rgb"]

  def close(self) -> None:
    """Frees the renderers."""
    self.env.close()
    for renderer in self._films.values():
      renderer.close()
    self._films.clear()


FAMILY = Family(
  robot="panda", tasks=tuple(TASKS), conditions={c.name: c.description for c in CONDITIONS.values()}, make=PandaWorld,
  time_limit=lambda task: get_task(task).time_limit, facts=lambda task: {"put_height_m": get_task(task).put_height_m},
  renderers=render.available, abilities=ABILITIES)
