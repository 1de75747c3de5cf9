"""Pick up the cube of the named colour and place it on the goal pad."""

import dataclasses
import math
from typing import Any

import numpy as np

from pi0rag_jax.sim.physics import Physics
from pi0rag_jax.sim.scene import SceneSpec, pad
from pi0rag_jax.sim.tasks.cubes import REST_TOLERANCE_M, CubesConfig, CubesLayout, CubesTask, Move
from pi0rag_jax.sim.tasks.table import RGB, draw_colours, draw_points, draw_tool_pose, is_left_alone

TARGET, GOAL = "cube_target", "goal"


@dataclasses.dataclass(frozen=True)
class PickAndPlaceConfig(CubesConfig):
  """The tunables. Lengths in m."""

  distractors: int = 1
  goal_colours: tuple[str, ...] = ("white",)
  goal_radius: float = 0.045
  success_radius: float = 0.03


@dataclasses.dataclass(frozen=True)
class PickAndPlaceLayout(CubesLayout):
  """Cube poses (x, y, yaw), the target first, their colours, and the goal."""

  goal: tuple[float, float]
  goal_colour: str


class PickAndPlace(CubesTask):
  """One target cube, distractors of other colours, one goal pad."""

  name = "pick_and_place"

  def __init__(self, config: PickAndPlaceConfig = PickAndPlaceConfig()):
    super().__init__(config, (TARGET, *(f"cube_{i}" for i in range(1, config.distractors + 1))))
    self.config: PickAndPlaceConfig = config
    self.scene = SceneSpec(objects=self._cube_bodies(), fixtures=(pad(GOAL, config.goal_radius),))

  def sample(self, rng: np.random.Generator, object_region: str = "full") -> PickAndPlaceLayout:
    """Returns a random layout; only the target cube obeys `object_region`."""
    colours = draw_colours(rng, self.config.cube_colours, len(self.cube_names))
    goal_colour = str(rng.choice(self.config.goal_colours))
    *points, goal = draw_points(rng, self.config, len(self.cube_names) + 1, object_region)
    return PickAndPlaceLayout(
      prompt=f"pick up the {colours[0]} cube and place it on the {goal_colour} pad",
      cubes=self._draw_cubes(rng, points),
      cube_colours=colours,
      tool_pose=draw_tool_pose(rng, self.config),
      goal=goal,
      goal_colour=goal_colour,
    )

  def apply(self, physics: Physics, layout: PickAndPlaceLayout) -> None:
    """Puts cubes and goal where `layout` says and colours them."""
    physics.place_fixture(GOAL, (*layout.goal, 0.0005))
    super().apply(physics, layout)

  def paint(self, physics: Physics, layout: PickAndPlaceLayout) -> None:
    """Colours cubes and goal as `layout` says."""
    super().paint(physics, layout)
    physics.paint(GOAL, RGB[layout.goal_colour])

  def succeeded(self, physics: Physics, layout: PickAndPlaceLayout) -> bool:
    """Returns whether the target lies still on the goal, released, with the fingertips above it."""
    x, y, z = physics.object_pose(TARGET)[0].tolist()
    if math.hypot(x - layout.goal[0], y - layout.goal[1]) > self.config.success_radius:
      return False
    resting = abs(z - self.config.cube_half_size) < REST_TOLERANCE_M
    return resting and is_left_alone(physics, TARGET, self.config.success_retreat)

  def privileged(self, physics: Physics, layout: PickAndPlaceLayout) -> dict[str, Any]:
    """Returns `target_position` [3], `target_yaw`, `goal_position` [2] and `grasped`."""
    return self._privileged(physics, Move(TARGET, layout.goal))
