"""Pour the balls from the cup into the bowl of the named colour.

The fingers point to the side and a little down, so that turning the hand about its own axis tips the cup. The cup
has a heavy, smooth foot: pushed, it slides instead of falling over.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim.controller import Workspace
from pi0rag_jax.sim.physics import Physics
from pi0rag_jax.sim.scene import BodySpec, GeomSpec, SceneSpec
from pi0rag_jax.sim.tasks.base import Layout, Task
from pi0rag_jax.sim.tasks.cubes import CUBE_RGB, HOLD_FORCE_N
from pi0rag_jax.sim.tasks.vessels import Vessel

CUP = "cup"
BOWLS = ("bowl_target", "bowl_other")
CUP_RGB = CUBE_RGB
BOWL_RGB = {"white": (0.95, 0.95, 0.95), "black": (0.08, 0.08, 0.1), "pink": (0.95, 0.45, 0.7)}
BALL_RGB = (0.98, 0.85, 0.1)
STILL_M_S = 0.15
_MAX_DRAWS = 10_000
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
class PouringConfig:
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
  area_low: tuple[float, float] = (0.38, -0.20)
  area_high: tuple[float, float] = (0.64, 0.20)
  held_out_low: tuple[float, float] = (0.38, 0.09)  # demonstrations may leave this part of the area out
  held_out_high: tuple[float, float] = (0.64, 0.20)
  cup_clearance: float = 0.13  # between the centres of the cup and a bowl
  bowl_clearance: float = 0.165  # between the centres of the bowls
  tool_home: tuple[float, float, float] = (0.46, -0.04, 0.20)
  tool_spread: tuple[float, float, float, float] = (0.03, 0.04, 0.02, 0.1)  # x, y, z, yaw
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
    if len(config.bowl_colours) < len(BOWLS):
      raise Pi0RagError(f"{len(BOWLS)} bowls need as many colours, bowl_colours has {list(config.bowl_colours)}")
    self.config = config
    self.time_limit = config.time_limit
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
    bowl_colours = tuple(str(colour) for colour in rng.permutation(config.bowl_colours)[: len(BOWLS)])
    cup, *bowls = self._sample_points(rng, object_region)
    yaw = float(rng.uniform(-config.cup_yaw, config.cup_yaw))
    spread = rng.uniform(-1.0, 1.0, 4) * config.tool_spread
    tool = np.array([*config.tool_home, 0.0]) + spread
    return PouringLayout(
      prompt=f"pour the balls from the {cup_colour} cup into the {bowl_colours[0]} bowl",
      tool_pose=tuple(tool.tolist()),
      cup=(*cup, yaw),
      cup_colour=cup_colour,
      bowls=tuple(bowls),
      bowl_colours=bowl_colours,
    )

  def _sample_points(self, rng: np.random.Generator, object_region: str) -> list[tuple[float, float]]:
    """Returns positions of the cup and the bowls, clear of each other, by rejection."""
    config = self.config
    for _ in range(_MAX_DRAWS):
      cup, *bowls = points = rng.uniform(config.area_low, config.area_high, (1 + len(BOWLS), 2))
      clear = min(math.dist(cup, bowl) for bowl in bowls) >= config.cup_clearance
      if clear and math.dist(*bowls) >= config.bowl_clearance and self._in_region(cup, object_region):
        return [(x, y) for x, y in points.tolist()]
    raise Pi0RagError("no room for a cup and two bowls: widen the area or lower the clearances")

  def _in_region(self, point, object_region: str) -> bool:
    held_out = bool(np.all(point >= self.config.held_out_low) and np.all(point <= self.config.held_out_high))
    return object_region == "full" or held_out == (object_region == "held_out")

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
    physics.paint(CUP, CUP_RGB[layout.cup_colour])
    for name in self.ball_names:
      physics.paint(name, BALL_RGB)
    for name, colour in zip(BOWLS, layout.bowl_colours):
      physics.paint(name, BOWL_RGB[colour])

  def succeeded(self, physics: Physics, layout: PouringLayout) -> bool:
    """Returns whether enough of the balls lie in the target bowl."""
    resting = sum(self._rests(physics, name, layout.bowls[0]) for name in self.ball_names)
    return resting >= self.config.success_share * self.config.balls

  def _rests(self, physics: Physics, ball: str, bowl: tuple[float, float]) -> bool:
    x, y, z = physics.object_pose(ball)[0].tolist()
    inside = math.hypot(x - bowl[0], y - bowl[1]) < self.config.bowl.rim_radius and z < self.config.bowl.height
    return bool(inside and np.linalg.norm(physics.object_velocity(ball)[:3]) < STILL_M_S)

  def privileged(self, physics: Physics, layout: PouringLayout) -> dict[str, Any]:
    """Returns `target_position` [3] of the grip on the cup, `target_yaw`, `goal_position` [2] and `grasped`."""
    return {
      "target_position": self.grip_position(physics),
      "target_yaw": physics.object_yaw(CUP),
      "goal_position": np.array(layout.bowls[0]),
      "grasped": physics.contacts().holds(CUP, HOLD_FORCE_N),
    }

  def grip_position(self, physics: Physics) -> np.ndarray:
    """Returns float[3], the point in the cup where the fingertips have to be."""
    return physics.object_pose(CUP)[0] + self.config.grip_height * cup_axis(physics)


def cup_axis(physics: Physics) -> np.ndarray:
  """Returns float[3], the direction from the cup's foot to its mouth."""
  w, x, y, z = physics.object_pose(CUP)[1].tolist()
  return np.array([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)])


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
