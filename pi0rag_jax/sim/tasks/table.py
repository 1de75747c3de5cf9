"""What tasks on the table share: where things may lie, how a layout is drawn, what colours are, who holds what."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim.physics import Physics

RGB = {
  "red": (0.85, 0.1, 0.1),
  "green": (0.1, 0.65, 0.15),
  "blue": (0.12, 0.2, 0.85),
  "white": (0.95, 0.95, 0.95),
  "yellow": (0.95, 0.8, 0.1),
  "black": (0.08, 0.08, 0.1),
  "pink": (0.95, 0.45, 0.7),
}
STILL_M_S = 0.03
_HOLD_FORCE_N = 1.0  # of each pad
_MAX_DRAWS = 10_000

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class TableConfig:
  """Where layouts put things and the tool. Lengths in m, angles in rad."""

  area_low: Point = (0.36, -0.20)
  area_high: Point = (0.66, 0.20)
  held_out_low: Point = (0.36, 0.09)  # demonstrations may leave this part of the area out
  held_out_high: Point = (0.66, 0.20)
  clearance: float = 0.115  # between the centres of any two things; open fingers reach 6 cm to each side
  tool_home: tuple[float, float, float] = (0.48, 0.0, 0.22)
  tool_spread: tuple[float, float, float, float] = (0.03, 0.04, 0.02, 0.1)  # x, y, z, yaw


def in_region(point, object_region: str, config: TableConfig) -> bool:
  """Returns whether `point` [2] (x, y in m) is in `object_region` (full, held_out or seen) of the table."""
  held_out = bool(np.all(np.greater_equal(point, config.held_out_low) & np.less_equal(point, config.held_out_high)))
  return object_region == "full" or held_out == (object_region == "held_out")


def draw_points(
  rng: np.random.Generator, config: TableConfig, count: int, object_region: str, *,
  obeying: Iterable[int] = (0,), wider: Mapping[tuple[int, int], float] = MappingProxyType({}),
) -> list[Point]:
  """Returns positions (x, y) of `count` things in the table's area, by rejection.

  Args:
    rng: draws all positions at once, until they are good.
    config: area and clearance.
    count: of the things.
    object_region: where the things number `obeying` have to be.
    obeying: numbers of things.
    wider: clearances, m, of pairs of things that need more room than `config.clearance`.
  Errors: Pi0RagError where there is no room for so many.
  """
  clearances = config.clearance * (1.0 - np.eye(count))
  for pair, clearance in wider.items():
    clearances[pair] = clearance
  for _ in range(_MAX_DRAWS):
    points = rng.uniform(config.area_low, config.area_high, (count, 2))
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)
    if np.all(gaps >= clearances) and all(in_region(points[i], object_region, config) for i in obeying):
      return [(x, y) for x, y in points.tolist()]
  raise Pi0RagError(f"no room for {count} things: widen the area or lower the clearance")


def draw_tool_pose(rng: np.random.Generator, config: TableConfig) -> tuple[float, float, float, float]:
  """Returns the tool's x, y, z in m and yaw in rad, near its home."""
  spread = rng.uniform(-1.0, 1.0, 4) * config.tool_spread
  x, y, z, yaw = (np.array([*config.tool_home, 0.0]) + spread).tolist()
  return x, y, z, yaw


def draw_colours(rng: np.random.Generator, colours: Sequence[str], count: int) -> tuple[str, ...]:
  """Returns `count` different colours."""
  return tuple(str(colour) for colour in rng.permutation(colours)[:count])


def require_colours(things: str, count: int, colours: Collection[str]) -> None:
  """Raises Pi0RagError if `count` of the `things` (in the plural) cannot all differ in colour."""
  if count > len(colours):
    raise Pi0RagError(
      f"{count} {things} need {count} colours, there are {list(colours)}: no two {things} may look alike")


def is_held(physics: Physics, name: str) -> bool:
  """Returns whether both fingers press on the object."""
  return physics.contacts().holds(name, _HOLD_FORCE_N)


def is_still(physics: Physics, name: str, limit_m_s: float = STILL_M_S) -> bool:
  """Returns whether the object moves slower than `limit_m_s`."""
  return bool(np.linalg.norm(physics.object_velocity(name)[:3]) < limit_m_s)


def is_left_alone(physics: Physics, name: str, retreat_m: float) -> bool:
  """Returns whether the object is still and released, with the fingertips `retreat_m` or more above its origin."""
  contacts = physics.contacts()
  released = name not in (contacts.body_left, contacts.body_right)
  retreated = physics.fingertip_pose()[0][2] >= physics.object_pose(name)[0][2] + retreat_m
  return bool(released and retreated) and is_still(physics, name)
