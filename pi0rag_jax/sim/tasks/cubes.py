"""What the tasks with cubes share: how cubes look, where a layout puts them, and when they have come to rest."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim.physics import Physics
from pi0rag_jax.sim.scene import BodySpec, box
from pi0rag_jax.sim.tasks.base import Layout, Task, in_region

CUBE_HALF_SIZE_M = 0.025
# A cube lies on something when its centre is this close to where it then has to be.
REST_TOLERANCE_M = 0.006
STILL_M_S = 0.03
HOLD_FORCE_N = 1.0
CUBE_RGB = {"red": (0.85, 0.1, 0.1), "green": (0.1, 0.65, 0.15), "blue": (0.12, 0.2, 0.85)}
_MAX_DRAWS = 10_000


@dataclasses.dataclass(frozen=True)
class CubesConfig:
  """The tunables of cubes on the table. Lengths in m, angles in rad."""

  cube_colours: tuple[str, ...] = ("red", "green", "blue")
  cube_half_size: float = CUBE_HALF_SIZE_M
  cube_mass_kg: float = 0.1
  cube_yaw: float = 0.2  # within +-; a cube looks the same every 90 degrees
  area_low: tuple[float, float] = (0.36, -0.20)
  area_high: tuple[float, float] = (0.66, 0.20)
  held_out_low: tuple[float, float] = (0.36, 0.09)  # demonstrations may leave this part of the area out
  held_out_high: tuple[float, float] = (0.66, 0.20)
  clearance: float = 0.115  # between the centres of any two things; the fingers need 6 cm around a cube
  tool_home: tuple[float, float, float] = (0.48, 0.0, 0.22)
  tool_spread: tuple[float, float, float, float] = (0.03, 0.04, 0.02, 0.1)  # x, y, z, yaw
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
    if len(cube_names) > len(config.cube_colours):
      raise Pi0RagError(
        f"{len(cube_names)} cubes need {len(cube_names)} colours, cube_colours has {list(config.cube_colours)}:"
        " no two cubes may look alike"
      )
    self.config, self.cube_names, self.time_limit = config, cube_names, config.time_limit

  def _cube_bodies(self) -> tuple[BodySpec, ...]:
    size = (self.config.cube_half_size, self.config.cube_half_size, self.config.cube_half_size)
    return tuple(box(name, size, self.config.cube_mass_kg) for name in self.cube_names)

  def _draw_colours(self, rng: np.random.Generator) -> tuple[str, ...]:
    """Returns one colour for each cube."""
    return tuple(str(colour) for colour in rng.permutation(self.config.cube_colours)[: len(self.cube_names)])

  def _draw_points(
    self, rng: np.random.Generator, count: int, object_region: str, obeying: Iterable[int]
  ) -> list[tuple[float, float]]:
    """Returns `count` positions at least `clearance` apart, by rejection; the `obeying` are in `object_region`."""
    held_out = self.config.held_out_low, self.config.held_out_high
    for _ in range(_MAX_DRAWS):
      points = rng.uniform(self.config.area_low, self.config.area_high, (count, 2))
      gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.eye(count) * 10
      if gaps.min() >= self.config.clearance and all(in_region(points[i], object_region, *held_out) for i in obeying):
        return [(x, y) for x, y in points.tolist()]
    raise Pi0RagError(f"no room for {count} things: widen the area or lower the clearance")

  def _draw_cubes(self, rng: np.random.Generator, points) -> tuple[tuple[float, float, float], ...]:
    """Returns the cubes' poses (x, y, yaw) at `points`, turned at random."""
    yaws = rng.uniform(-self.config.cube_yaw, self.config.cube_yaw, len(self.cube_names))
    return tuple((x, y, float(yaw)) for (x, y), yaw in zip(points, yaws))

  def _draw_tool_pose(self, rng: np.random.Generator) -> tuple[float, float, float, float]:
    spread = rng.uniform(-1.0, 1.0, 4) * self.config.tool_spread
    x, y, z, yaw = (np.array([*self.config.tool_home, 0.0]) + spread).tolist()
    return x, y, z, yaw

  def apply(self, physics: Physics, layout: CubesLayout) -> None:
    """Puts the cubes where `layout` says and colours them."""
    for name, (x, y, yaw) in zip(self.cube_names, layout.cubes):
      physics.place_object(name, (x, y, self.config.cube_half_size), yaw)
    self.paint(physics, layout)

  def paint(self, physics: Physics, layout: CubesLayout) -> None:
    """Colours the cubes as `layout` says."""
    for name, colour in zip(self.cube_names, layout.cube_colours):
      physics.paint(name, CUBE_RGB[colour])

  def _left_alone(self, physics: Physics, cube: str) -> bool:
    """Returns whether `cube` is still and released, with the fingertips above it."""
    still = np.linalg.norm(physics.object_velocity(cube)[:3]) < STILL_M_S
    contacts = physics.contacts()
    released = cube not in (contacts.body_left, contacts.body_right)
    retreated = physics.fingertip_pose()[0][2] >= physics.object_pose(cube)[0][2] + self.config.success_retreat
    return bool(still and released and retreated)

  def _privileged(self, physics: Physics, move: Move) -> dict[str, np.ndarray | float | bool]:
    """Returns the entries that `Task.privileged` asks for, for the cube that moves next."""
    return {
      "target_position": physics.object_pose(move.cube)[0],
      "target_yaw": physics.object_yaw(move.cube),
      "goal_position": np.array(move.goal),
      "grasped": physics.contacts().holds(move.cube, HOLD_FORCE_N),
    }
