"""What the tasks with cubes share: how cubes look, where a layout puts them, and when they have come to rest."""

import dataclasses

import numpy as np

from pi0rag_jax.sim.physics import Physics
from pi0rag_jax.sim.scene import BodySpec, box
from pi0rag_jax.sim.tasks.base import Layout, Task
from pi0rag_jax.sim.tasks.table import RGB, TableConfig, is_held, require_colours

CUBE_HALF_SIZE_M = 0.025
# A cube lies on something when its centre is this close to where it then has to be.
REST_TOLERANCE_M = 0.006


@dataclasses.dataclass(frozen=True)
class CubesConfig(TableConfig):
  """The tunables of cubes on the table. Lengths in m, angles in rad."""

  cube_colours: tuple[str, ...] = ("red", "green", "blue")
  cube_half_size: float = CUBE_HALF_SIZE_M
  cube_mass_kg: float = 0.1
  cube_yaw: float = 0.2  # within +-; a cube looks the same every 90 degrees
  success_retreat: float = 0.03  # of the fingertips above the placed cube's centre
  time_limit: int = 180  # control ticks of 50 ms, about twice the expert's episode


@dataclasses.dataclass(frozen=True)
class CubesLayout(Layout):
  """Cube poses (x, y, yaw) and their colours."""

  cubes: tuple[tuple[float, float, float], ...]
  cube_colours: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Move:
  """A cube and where it belongs: the point [2] and the height of what it will rest on, m."""

  cube: str
  goal: tuple[float, float]
  support: float = 0.0


class CubesTask(Task):
  """Cubes of different colours on the table; a task says which goes where."""

  config: CubesConfig

  def __init__(self, config: CubesConfig, cube_names: tuple[str, ...]):
    require_colours("cubes", len(cube_names), config.cube_colours)
    self.config, self.cube_names, self.time_limit = config, cube_names, config.time_limit

  def _cube_bodies(self) -> tuple[BodySpec, ...]:
    size = (self.config.cube_half_size, self.config.cube_half_size, self.config.cube_half_size)
    return tuple(box(name, size, self.config.cube_mass_kg) for name in self.cube_names)

  def _draw_cubes(self, rng: np.random.Generator, points) -> tuple[tuple[float, float, float], ...]:
    """Returns the cubes' poses (x, y, yaw) at `points`, turned at random."""
    yaws = rng.uniform(-self.config.cube_yaw, self.config.cube_yaw, len(self.cube_names))
    return tuple((x, y, float(yaw)) for (x, y), yaw in zip(points, yaws))

  def apply(self, physics: Physics, layout: CubesLayout) -> None:
    """Puts the cubes where `layout` says and colours them."""
    for name, (x, y, yaw) in zip(self.cube_names, layout.cubes):
      physics.place_object(name, (x, y, self.config.cube_half_size), yaw)
    self.paint(physics, layout)

  def paint(self, physics: Physics, layout: CubesLayout) -> None:
    """Colours the cubes as `layout` says."""
    for name, colour in zip(self.cube_names, layout.cube_colours):
      physics.paint(name, RGB[colour])

  def _privileged(self, physics: Physics, move: Move) -> dict[str, np.ndarray | float | bool]:
    """Returns the entries that `Task.privileged` asks for, for the cube that moves next."""
    return {
      "target_position": physics.object_pose(move.cube)[0],
      "target_yaw": physics.object_yaw(move.cube),
      "goal_position": np.array(move.goal),
      "grasped": is_held(physics, move.cube),
    }
