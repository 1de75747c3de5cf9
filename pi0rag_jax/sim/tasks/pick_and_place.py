"""Pick up the cube of the named colour and place it on the goal pad."""

import dataclasses
import math
from typing import Any

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim.physics import Physics
from pi0rag_jax.sim.scene import SceneSpec, box, pad
from pi0rag_jax.sim.tasks.base import Layout, Task

TARGET, GOAL = "cube_target", "goal"
CUBE_HALF_SIZE_M = 0.025
# A cube lies on the table when its centre is this close to its half size.
REST_TOLERANCE_M = 0.006
STILL_M_S = 0.03
HOLD_FORCE_N = 1.0
CUBE_RGB = {"red": (0.85, 0.1, 0.1), "green": (0.1, 0.65, 0.15), "blue": (0.12, 0.2, 0.85)}
GOAL_RGB = {"white": (0.95, 0.95, 0.95)}
_MAX_DRAWS = 10_000


@dataclasses.dataclass(frozen=True)
class PickAndPlaceConfig:
  """The tunables. Lengths in m, angles in rad."""

  distractors: int = 1
  cube_colours: tuple[str, ...] = ("red", "green", "blue")
  goal_colours: tuple[str, ...] = ("white",)
  cube_half_size: float = CUBE_HALF_SIZE_M
  cube_mass_kg: float = 0.1
  cube_yaw: float = 0.2  # within +-; a cube looks the same every 90 degrees
  goal_radius: float = 0.045
  area_low: tuple[float, float] = (0.36, -0.20)
  area_high: tuple[float, float] = (0.66, 0.20)
  held_out_low: tuple[float, float] = (0.36, 0.09)  # demonstrations may leave this part of the area out
  held_out_high: tuple[float, float] = (0.66, 0.20)
  clearance: float = 0.115  # between the centres of any two things; the fingers need 6 cm around a cube
  tool_home: tuple[float, float, float] = (0.48, 0.0, 0.22)
  tool_spread: tuple[float, float, float, float] = (0.03, 0.04, 0.02, 0.1)  # x, y, z, yaw
  success_radius: float = 0.03
  success_retreat: float = 0.03  # of the fingertips above the cube's centre
  time_limit: int = 180  # control ticks of 50 ms, about twice the expert's episode


@dataclasses.dataclass(frozen=True)
class PickAndPlaceLayout(Layout):
  """Cube poses (x, y, yaw), the target first, their colours, and the goal."""

  cubes: tuple[tuple[float, float, float], ...]
  cube_colours: tuple[str, ...]
  goal: tuple[float, float]
  goal_colour: str


class PickAndPlace(Task):
  """One target cube, distractors of other colours, one goal pad."""

  name = "pick_and_place"

  def __init__(self, config: PickAndPlaceConfig = PickAndPlaceConfig()):
    if config.distractors >= len(config.cube_colours):
      raise Pi0RagError(
        f"{config.distractors} distractors need more cube colours than {list(config.cube_colours)}:"
        " no two cubes may look alike"
      )
    self.config = config
    self.time_limit = config.time_limit
    self.cube_names = (TARGET, *(f"cube_{i}" for i in range(1, config.distractors + 1)))
    size = (config.cube_half_size, config.cube_half_size, config.cube_half_size)
    cubes = tuple(box(name, size, config.cube_mass_kg) for name in self.cube_names)
    self.scene = SceneSpec(objects=cubes, fixtures=(pad(GOAL, config.goal_radius),))

  def sample(self, rng: np.random.Generator, object_region: str = "full") -> PickAndPlaceLayout:
    """Returns a random layout; only the target cube obeys `object_region`."""
    config = self.config
    colours = [str(colour) for colour in rng.permutation(config.cube_colours)[: len(self.cube_names)]]
    goal_colour = str(rng.choice(config.goal_colours))
    points = self._sample_points(rng, object_region)
    yaws = rng.uniform(-config.cube_yaw, config.cube_yaw, len(self.cube_names))
    spread = rng.uniform(-1.0, 1.0, 4) * config.tool_spread
    tool = np.array([*config.tool_home, 0.0]) + spread
    return PickAndPlaceLayout(
      prompt=f"pick up the {colours[0]} cube and place it on the {goal_colour} pad",
      tool_pose=tuple(tool.tolist()),
      cubes=tuple((x, y, float(yaw)) for (x, y), yaw in zip(points[:-1], yaws)),
      cube_colours=tuple(colours),
      goal=points[-1],
      goal_colour=goal_colour,
    )

  def _sample_points(self, rng: np.random.Generator, object_region: str) -> list[tuple[float, float]]:
    """Returns positions of all cubes and the goal, at least `clearance` apart, by rejection."""
    for _ in range(_MAX_DRAWS):
      points = rng.uniform(self.config.area_low, self.config.area_high, (len(self.cube_names) + 1, 2))
      gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.eye(len(points)) * 10
      if gaps.min() >= self.config.clearance and self._in_region(points[0], object_region):
        return [tuple(point) for point in points.tolist()]
    raise Pi0RagError(f"no room for {len(self.cube_names)} cubes and a goal: widen the area or lower the clearance")

  def _in_region(self, point, object_region: str) -> bool:
    held_out = bool(np.all(point >= self.config.held_out_low) and np.all(point <= self.config.held_out_high))
    return object_region == "full" or held_out == (object_region == "held_out")

  def apply(self, physics: Physics, layout: PickAndPlaceLayout) -> None:
    """Puts cubes and goal where `layout` says and colours them."""
    for name, (x, y, yaw) in zip(self.cube_names, layout.cubes):
      physics.place_object(name, (x, y, self.config.cube_half_size), yaw)
    physics.place_fixture(GOAL, (*layout.goal, 0.0005))
    self.paint(physics, layout)

  def paint(self, physics: Physics, layout: PickAndPlaceLayout) -> None:
    """Colours cubes and goal as `layout` says."""
    for name, colour in zip(self.cube_names, layout.cube_colours):
      physics.paint(name, CUBE_RGB[colour])
    physics.paint(GOAL, GOAL_RGB[layout.goal_colour])

  def succeeded(self, physics: Physics, layout: PickAndPlaceLayout) -> bool:
    """Returns whether the target lies still on the goal, released, with the fingertips above it."""
    config = self.config
    position, _ = physics.object_pose(TARGET)
    x, y, z = position.tolist()
    if math.hypot(x - layout.goal[0], y - layout.goal[1]) > config.success_radius:
      return False
    resting = abs(z - config.cube_half_size) < REST_TOLERANCE_M
    still = np.linalg.norm(physics.object_velocity(TARGET)[:3]) < STILL_M_S
    contacts = physics.contacts()
    released = TARGET not in (contacts.body_left, contacts.body_right)
    retreated = physics.fingertip_pose()[0][2] >= z + config.success_retreat
    return bool(resting and still and released and retreated)

  def privileged(self, physics: Physics, layout: PickAndPlaceLayout) -> dict[str, Any]:
    """Returns `target_position` [3], `target_yaw`, `goal_position` [2] and `grasped`."""
    return {
      "target_position": physics.object_pose(TARGET)[0],
      "target_yaw": physics.object_yaw(TARGET),
      "goal_position": np.array(layout.goal),
      "grasped": physics.contacts().holds(TARGET, HOLD_FORCE_N),
    }
