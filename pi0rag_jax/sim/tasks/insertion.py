"""Insert the peg of the named colour into the socket.

A peg stands on a weighted round tip, so that it rights itself after a fall. The socket is a square hole with a
chamfered mouth: tip and chamfer lead a peg that comes down beside the middle into the straight part.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from pi0rag_jax.sim.physics import Physics
from pi0rag_jax.sim.scene import BodySpec, GeomSpec, SceneSpec
from pi0rag_jax.sim.tasks.base import Layout, Task
from pi0rag_jax.sim.tasks.table import (
  RGB,
  TableConfig,
  draw_colours,
  draw_points,
  draw_tool_pose,
  is_held,
  is_left_alone,
  require_colours,
)

PEG, SOCKET = "peg_target", "socket"
# The flat foot in the round tip: half its side and its height, as shares of the peg's radius. A wider or lighter one
# would hold a fallen peg on its edge. Its mass is that of a tip filled with tungsten up to 6 mm.
_FOOT, _FOOT_HEIGHT = 0.25, 0.5
_FOOT_MASS = 0.95  # share of the peg's mass
# Polished: with the friction of the cubes a peg would stick on a chamfer of 45 degrees.
_SLIPPERY = (0.3, 0.005, 0.001)
_CONTACT_DIMS = 6  # with rolling friction: a peg that was dropped does not roll out of reach
_PRIORITY = 1  # as that of the finger pads: a peg slips on the table too, but not in the fingers
_CHAMFER_THICKNESS_M = 0.002  # half


@dataclasses.dataclass(frozen=True)
class InsertionConfig(TableConfig):
  """The tunables. Lengths in m."""

  distractors: int = 1
  peg_colours: tuple[str, ...] = ("red", "green", "blue")
  socket_colours: tuple[str, ...] = ("white", "yellow")
  peg_radius: float = 0.016
  peg_height: float = 0.09
  peg_mass_kg: float = 0.03
  hole_clearance: float = 0.0015  # between the peg and the hole, on each side
  hole_depth: float = 0.048  # with the chamfer
  chamfer: float = 0.01  # how much wider the mouth is on each side, and how much of the depth it takes
  success_depth: float = 0.7  # of the hole's depth that the tip has reached
  success_tilt_rad: float = 0.2
  success_retreat: float = 0.015  # of the fingertips above the peg's upper end
  time_limit: int = 160  # control ticks of 50 ms; the expert takes 62, and about 100 where it is disturbed


@dataclasses.dataclass(frozen=True)
class InsertionLayout(Layout):
  """Peg positions (x, y), the target first, their colours, and the socket."""

  pegs: tuple[tuple[float, float], ...]
  peg_colours: tuple[str, ...]
  socket: tuple[float, float]
  socket_colour: str


class Insertion(Task):
  """One target peg, distractors of other colours, one socket."""

  name = "insertion"

  def __init__(self, config: InsertionConfig = InsertionConfig()):
    self.config, self.time_limit = config, config.time_limit
    self.peg_names = (PEG, *(f"peg_{i}" for i in range(1, config.distractors + 1)))
    require_colours("pegs", len(self.peg_names), config.peg_colours)
    pegs = tuple(BodySpec(name, peg_geoms(config)) for name in self.peg_names)
    self.scene = SceneSpec(objects=pegs, fixtures=(BodySpec(SOCKET, socket_geoms(config)),))

  def sample(self, rng: np.random.Generator, object_region: str = "full") -> InsertionLayout:
    """Returns a random layout; only the target peg obeys `object_region`."""
    colours = draw_colours(rng, self.config.peg_colours, len(self.peg_names))
    socket_colour = str(rng.choice(self.config.socket_colours))
    *pegs, socket = draw_points(rng, self.config, len(self.peg_names) + 1, object_region)
    return InsertionLayout(
      prompt=f"insert the {colours[0]} peg into the {socket_colour} socket",
      tool_pose=draw_tool_pose(rng, self.config),
      pegs=tuple(pegs),
      peg_colours=colours,
      socket=socket,
      socket_colour=socket_colour,
    )

  def apply(self, physics: Physics, layout: InsertionLayout) -> None:
    """Puts pegs and socket where `layout` says and colours them."""
    for name, point in zip(self.peg_names, layout.pegs):
      physics.place_object(name, (*point, 0.0), 0.0)
    physics.place_fixture(SOCKET, (*layout.socket, 0.0))
    self.paint(physics, layout)

  def paint(self, physics: Physics, layout: InsertionLayout) -> None:
    """Colours pegs and socket as `layout` says."""
    for name, colour in zip(self.peg_names, layout.peg_colours):
      physics.paint(name, RGB[colour])
    physics.paint(SOCKET, RGB[layout.socket_colour])

  def succeeded(self, physics: Physics, layout: InsertionLayout) -> bool:
    """Returns whether the target stands still in the socket, released, with the fingertips above it."""
    config = self.config
    tip = physics.object_pose(PEG)[0].tolist()
    inside = math.dist(tip[:2], layout.socket) < config.peg_radius
    deep = tip[2] < (1.0 - config.success_depth) * config.hole_depth
    upright = bool(physics.object_axis(PEG)[2] > math.cos(config.success_tilt_rad))
    retreat_m = config.peg_height + config.success_retreat
    return inside and deep and upright and is_left_alone(physics, PEG, retreat_m)

  def privileged(self, physics: Physics, layout: InsertionLayout) -> dict[str, Any]:
    """Returns `target_position` [3] of the tip, `target_yaw`, `goal_position` [2] and `grasped`."""
    return {
      "target_position": physics.object_pose(PEG)[0],
      "target_yaw": 0.0,  # a peg is round
      "goal_position": np.array(layout.socket),
      "grasped": is_held(physics, PEG),
    }


def peg_geoms(config: InsertionConfig) -> tuple[GeomSpec, ...]:
  """Returns a peg with its origin at the middle of the foot: weighted flat foot, round tip, shaft."""
  radius, foot, tall = config.peg_radius, _FOOT * config.peg_radius, _FOOT_HEIGHT * config.peg_radius / 2
  shaft = (config.peg_height - radius) / 2
  hollow = (1.0 - _FOOT_MASS) / 2
  parts = (
    ("box", (foot, foot, tall), tall, _FOOT_MASS),
    ("sphere", (radius,), radius, hollow),
    ("cylinder", (radius, shaft), radius + shaft, hollow),
  )
  return tuple(
    GeomSpec(
      shape,
      size,
      (0.0, 0.0, height),
      mass_kg=share * config.peg_mass_kg,
      friction=_SLIPPERY,
      contact_dims=_CONTACT_DIMS,
      priority=_PRIORITY,
    )
    for shape, size, height, share in parts
  )


def socket_geoms(config: InsertionConfig) -> tuple[GeomSpec, ...]:
  """Returns four walls round a square hole and four slanted plates above them, the chamfer; the table is the floor."""
  hole, chamfer, thin = config.peg_radius + config.hole_clearance, config.chamfer, _CHAMFER_THICKNESS_M
  straight = config.hole_depth - chamfer
  wall = (chamfer / 2, hole + chamfer, straight / 2)
  plate = (chamfer / math.sqrt(2), hole + chamfer, thin)
  # The plate's upper face runs from the hole's edge to the mouth's, so its middle lies half its thickness beneath.
  inset = thin / math.sqrt(2)
  geoms = []
  for side in range(4):
    yaw = side * math.pi / 2
    turn = (math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))
    reach = hole + chamfer / 2
    geoms.append(GeomSpec("box", wall, _turned(reach, straight / 2, yaw), turn, friction=_SLIPPERY))
    position = _turned(reach + inset, straight + chamfer / 2 - inset, yaw)
    geoms.append(GeomSpec("box", plate, position, _raised(turn), friction=_SLIPPERY))
  return tuple(geoms)


def _turned(reach: float, height: float, yaw: float) -> tuple[float, float, float]:
  """Returns the point at `reach` from the vertical axis, in the direction `yaw`."""
  return reach * math.cos(yaw), reach * math.sin(yaw), height


def _raised(turn: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
  """Returns the quaternion of a plate that is turned like `turn` and rises outwards by 45 degrees."""
  w, _, _, z = turn
  c, s = math.cos(math.pi / 8), -math.sin(math.pi / 8)  # about the plate's own y axis
  return w * c, -z * s, w * s, z * c
