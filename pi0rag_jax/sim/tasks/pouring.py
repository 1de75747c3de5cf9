"""Pour the balls from the cup into the bowl of the named colour.

The fingers point to the side and a little down, so that turning the hand about its own axis tips the cup. The cup
has a heavy, smooth foot: pushed, it slides instead of falling over.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from pi0rag_jax.sim.controller import Workspace
from pi0rag_jax.sim.physics import Physics
from pi0rag_jax.sim.scene import BodySpec, GeomSpec, SceneSpec
from pi0rag_jax.sim.tasks.base import Layout, Task
from pi0rag_jax.sim.tasks.table import (
  RGB,
  Point,
  TableConfig,
  draw_colours,
  draw_points,
  draw_tool_pose,
  is_held,
  is_still,
  require_colours,
)
from pi0rag_jax.sim.tasks.vessels import Vessel

CUP = "cup"
BOWLS = ("bowl_target", "bowl_other")
BALL_RGB = (0.98, 0.85, 0.1)
_BALL_STILL_M_S = 0.15  # in a bowl they rock for long
_BALL_FRICTION = (0.5, 0.005, 0.0001)
# The fingers point to the left, 20 degrees down. Pointing away from the base, the wrist would hang below a level hand
# and meet the table or its own limit. From this posture the box is reached without a jump of the joints, but for 7 mm
# at the table in its far right corner.
POUR_WORKSPACE = Workspace(
  low=(0.30, -0.20, 0.035, -2.7),
  high=(0.67, 0.26, 0.30, 0.3),
  tilt_rad=math.radians(70),
  heading_rad=math.pi / 2,
  home_q=(0.06, 0.40, -0.45, -2.13, 1.18, 1.52, -1.81),
)


@dataclasses.dataclass(frozen=True)
class PouringConfig(TableConfig):
  """The tunables. Lengths in m, angles in rad."""

  balls: int = 8
  ball_radius: float = 0.009
  ball_mass_kg: float = 0.003
  cup: Vessel = Vessel(
    radius=0.025, height=0.062, thickness=0.003, foot_radius=0.037,
    foot_mass_kg=0.12, walls_mass_kg=0.03, foot_friction=0.3,
  )  # fmt: skip
  grip_height: float = 0.046  # of the fingertips on the cup
  bowl: Vessel = Vessel(radius=0.045, height=0.032, thickness=0.004, foot_radius=0.05, lean_rad=0.6)
  cup_colours: tuple[str, ...] = ("red", "green", "blue")
  bowl_colours: tuple[str, ...] = ("white", "black", "pink")
  cup_yaw: float = 0.2  # within +-; the closing fingers turn one of its flat sides into line
  area_low: Point = (0.38, -0.20)
  area_high: Point = (0.64, 0.20)
  held_out_low: Point = (0.38, 0.09)
  held_out_high: Point = (0.64, 0.20)
  clearance: float = 0.13  # between the centres of the cup and a bowl
  bowl_clearance: float = 0.165  # between the centres of the bowls
  tool_home: tuple[float, float, float] = (0.46, -0.04, 0.20)
  success_share: float = 0.75  # of the balls
  time_limit: int = 200  # control ticks of 50 ms, about twice the expert's episode


@dataclasses.dataclass(frozen=True)
class PouringLayout(Layout):
  """The cup's pose (x, y, yaw), the bowls' positions, the target first, and the colours."""

  cup: tuple[float, float, float]
  cup_colour: str
  bowls: tuple[tuple[float, float], ...]
  bowl_colours: tuple[str, ...]


class Pouring(Task):
  """One cup with balls, two bowls of different colours."""

  name = "pouring"
  workspace = POUR_WORKSPACE

  def __init__(self, config: PouringConfig = PouringConfig()):
    require_colours("bowls", len(BOWLS), config.bowl_colours)
    self.config, self.time_limit = config, config.time_limit
    self.ball_names = tuple(f"ball_{i}" for i in range(config.balls))
    self._nest = ball_nest(config)
    size = (config.ball_radius,)
    ball = GeomSpec("sphere", size, mass_kg=config.ball_mass_kg, friction=_BALL_FRICTION, contact_dims=3)
    self.scene = SceneSpec(
      objects=(
        BodySpec(CUP, config.cup.geoms()),
        *(BodySpec(name, (ball,), may_fall=True) for name in self.ball_names),
      ),
      fixtures=tuple(BodySpec(name, config.bowl.geoms()) for name in BOWLS),
    )

  def sample(self, rng: np.random.Generator, object_region: str = "full") -> PouringLayout:
    """Returns a random layout; only the cup obeys `object_region`."""
    config = self.config
    cup_colour = str(rng.choice(config.cup_colours))
    bowl_colours = draw_colours(rng, config.bowl_colours, len(BOWLS))
    wider = {(1, 2): config.bowl_clearance}
    cup, *bowls = draw_points(rng, config, 1 + len(BOWLS), object_region, wider=wider)
    yaw = float(rng.uniform(-config.cup_yaw, config.cup_yaw))
    return PouringLayout(
      prompt=f"pour the balls from the {cup_colour} cup into the {bowl_colours[0]} bowl",
      tool_pose=draw_tool_pose(rng, config),
      cup=(*cup, yaw),
      cup_colour=cup_colour,
      bowls=tuple(bowls),
      bowl_colours=bowl_colours,
    )

  def apply(self, physics: Physics, layout: PouringLayout) -> None:
    """Puts the cup with the balls in it and the bowls where `layout` says and colours them."""
    x, y, yaw = layout.cup
    physics.place_object(CUP, (x, y, 0.0), yaw)
    for name, (dx, dy, dz) in zip(self.ball_names, self._nest):
      physics.place_object(name, (x + dx, y + dy, dz), 0.0)
    for name, bowl in zip(BOWLS, layout.bowls):
      physics.place_fixture(name, (*bowl, 0.0))
    self.paint(physics, layout)

  def paint(self, physics: Physics, layout: PouringLayout) -> None:
    """Colours cup, balls and bowls as `layout` says."""
    physics.paint(CUP, RGB[layout.cup_colour])
    for name in self.ball_names:
      physics.paint(name, BALL_RGB)
    for name, colour in zip(BOWLS, layout.bowl_colours):
      physics.paint(name, RGB[colour])

  def succeeded(self, physics: Physics, layout: PouringLayout) -> bool:
    """Returns whether enough of the balls lie in the target bowl."""
    resting = sum(self._rests(physics, name, layout.bowls[0]) for name in self.ball_names)
    return resting >= self.config.success_share * self.config.balls

  def _rests(self, physics: Physics, ball: str, bowl: tuple[float, float]) -> bool:
    x, y, z = physics.object_pose(ball)[0].tolist()
    inside = math.hypot(x - bowl[0], y - bowl[1]) < self.config.bowl.rim_radius and z < self.config.bowl.height
    return inside and is_still(physics, ball, _BALL_STILL_M_S)

  def privileged(self, physics: Physics, layout: PouringLayout) -> dict[str, Any]:
    """Returns `target_position` [3] of the grip on the cup, `target_yaw`, `goal_position` [2] and `grasped`."""
    return {
      "target_position": self.grip_position(physics),
      "target_yaw": physics.object_yaw(CUP),
      "goal_position": np.array(layout.bowls[0]),
      "grasped": is_held(physics, CUP),
    }

  def grip_position(self, physics: Physics) -> np.ndarray:
    """Returns float[3], the point in the cup where the fingertips have to be."""
    return physics.object_pose(CUP)[0] + self.config.grip_height * physics.object_axis(CUP)


def ball_nest(config: PouringConfig) -> list[tuple[float, float, float]]:
  """Returns where the balls lie in an upright cup at the origin: layers of four, each turned against the last."""
  radius, places = config.ball_radius, []
  ring = (radius * math.sqrt(2) + config.cup.radius - radius) / 2
  for i in range(config.balls):
    layer = i // 4
    heading = math.pi / 2 * i + math.pi / 4 * layer
    height = config.cup.thickness + radius * (1 + 1.9 * layer)
    places.append((ring * math.cos(heading), ring * math.sin(heading), height))
  return places
