"""Stack cubes in the order of the named colours: two beside a third, or all three."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pi0rag_jax.sim.physics import Physics
from pi0rag_jax.sim.scene import SceneSpec
from pi0rag_jax.sim.tasks.cubes import REST_TOLERANCE_M, CubesConfig, CubesLayout, CubesTask, Move
from pi0rag_jax.sim.tasks.table import draw_colours, draw_points, draw_tool_pose, is_held, is_left_alone

# From a tower to a cube beside it: the hand that reaches down is 10 cm wide to each side.
TOWER_CLEARANCE_M = 0.15
# Cubes in the way go to the nearest free one of these many places along x and y.
_PLACES = (6, 8)

Centres = Mapping[str, Sequence[float]]


@dataclasses.dataclass(frozen=True)
class StackingConfig(CubesConfig):
  """The tunables. Lengths in m."""

  levels: int = 2
  distractors: int = 1
  success_offset: float = 0.018  # between the centres of a cube and the one that it lies on


class Stacking(CubesTask):
  """`levels` cubes that become a tower, named from its top down, and distractors."""

  name = "stacking"

  def __init__(self, config: StackingConfig = StackingConfig()):
    super().__init__(config, tuple(f"cube_{i}" for i in range(config.levels + config.distractors)))
    self.config: StackingConfig = config
    self.scene = SceneSpec(objects=self._cube_bodies())
    self.put_height_m = 2 * config.cube_half_size * (config.levels - 1)
    self.tower = self.cube_names[config.levels - 1 :: -1]  # from its base up
    (west, south), (east, north) = config.area_low, config.area_high
    axes = np.linspace(west, east, _PLACES[0]).tolist(), np.linspace(south, north, _PLACES[1]).tolist()
    self._places = tuple(itertools.product(*axes))

  def sample(self, rng: np.random.Generator, object_region: str = "full") -> CubesLayout:
    """Returns a random layout; the cubes that have to be moved obey `object_region`."""
    levels = self.config.levels
    colours = draw_colours(rng, self.config.cube_colours, len(self.cube_names))
    points = draw_points(rng, self.config, len(self.cube_names), object_region, obeying=range(levels - 1))
    return CubesLayout(
      prompt="stack " + " on ".join(f"the {colour} cube" for colour in colours[:levels]),
      cubes=self._draw_cubes(rng, points),
      cube_colours=colours,
      tool_pose=draw_tool_pose(rng, self.config),
    )

  def succeeded(self, physics: Physics, layout: CubesLayout) -> bool:
    """Returns whether the tower stands still on the table, released, with the fingertips above it."""
    centres = self._centres(physics)
    built = self._on_table(centres) and all(
      self._stacked(centres[upper], centres[lower]) for lower, upper in itertools.pairwise(self.tower))
    return built and all(is_left_alone(physics, name, self.config.success_retreat) for name in self.tower)

  def privileged(self, physics: Physics, layout: CubesLayout) -> dict[str, Any]:
    """Returns `target_position` [3], `target_yaw`, `goal_position` [2] and `grasped` for the cube that moves next."""
    held = next((name for name in self.cube_names if is_held(physics, name)), None)
    return self._privileged(physics, self.next_move(self._centres(physics), held))

  def next_move(self, centres: Centres, held: str | None) -> Move:
    """Returns which cube moves next, and where to.

    That is the lowest one which is not in its place yet. Whatever lies on it or on its place is first put aside, and
    so is a cube that the hand holds instead.

    Args:
      centres: position [3] of every cube.
      held: name of the cube in the hand, if any.
    """
    move = self._wanted(centres, held)
    if held not in (None, move.cube):
      return self._aside(centres, held)
    in_the_way = self._in_the_way(centres, move, held)
    if in_the_way is None:
      return move
    return self._aside(centres, held or self._topmost(centres, in_the_way))

  def _wanted(self, centres: Centres, held: str | None) -> Move:
    """Returns the move that builds the tower further, as if nothing were in its way."""
    base = self.tower[0]
    if held == base or not self._on_table(centres):
      return self._aside(centres, base)
    moves = [Move(upper, _point(centres[lower]), centres[lower][2] + self.config.cube_half_size)
             for lower, upper in itertools.pairwise(self.tower)]
    missing = (move for move, (lower, upper) in zip(moves, itertools.pairwise(self.tower))
               if upper == held or not self._stacked(centres[upper], centres[lower]))
    return next(missing, moves[-1])

  def _in_the_way(self, centres: Centres, move: Move, held: str | None) -> str | None:
    """Returns a cube that lies on the place of `move` or, unless that is held, on its cube."""
    place = (*move.goal, move.support - self.config.cube_half_size)
    below = [place] if held else [place, centres[move.cube]]
    carried = () if held is None else (held, *self._on(centres, centres[held]))
    candidates = (name for thing in below for name in self._on(centres, thing))
    return next((name for name in candidates if name not in (move.cube, *carried)), None)

  def _on(self, centres: Centres, thing: Sequence[float]) -> list[str]:
    """Returns the cubes that are somewhere on top of the one centred at `thing` [3]."""
    half_size = self.config.cube_half_size
    return [name for name, centre in centres.items()
            if centre[2] - thing[2] > half_size and math.dist(_point(centre), _point(thing)) < 1.8 * half_size]

  def _topmost(self, centres: Centres, cube: str) -> str:
    """Returns the highest cube on top of `cube`, or itself."""
    return max((cube, *self._on(centres, centres[cube])), key=lambda name: centres[name][2])

  def _aside(self, centres: Centres, cube: str) -> Move:
    """Returns the move of `cube` to the nearest free place on the table."""
    others = [_point(centres[name]) for name in centres if name != cube]

    def cost(place: tuple[float, float]):
      room = min(math.dist(place, other) for other in others)
      return max(TOWER_CLEARANCE_M - room, 0.0), math.dist(place, _point(centres[cube]))

    return Move(cube, min(self._places, key=cost))

  def _centres(self, physics: Physics) -> dict[str, list[float]]:
    return {name: physics.object_pose(name)[0].tolist() for name in self.cube_names}

  def _on_table(self, centres: Centres) -> bool:
    """Whether the tower's base lies on the table."""
    return abs(centres[self.tower[0]][2] - self.config.cube_half_size) < REST_TOLERANCE_M

  def _stacked(self, upper: Sequence[float], lower: Sequence[float]) -> bool:
    """Whether the cube at `upper` [3] lies on the one at `lower` [3]."""
    rise = upper[2] - lower[2] - 2 * self.config.cube_half_size
    return abs(rise) < REST_TOLERANCE_M and math.dist(_point(upper), _point(lower)) <= self.config.success_offset


class StackingThree(Stacking):
  """All three cubes on one another."""

  name = "stacking_three"

  def __init__(
    self,
    config: StackingConfig = StackingConfig(levels=3, distractors=0, clearance=TOWER_CLEARANCE_M, time_limit=330),
  ):
    super().__init__(config)


def _point(centre: Sequence[float]) -> tuple[float, float]:
  return centre[0], centre[1]
