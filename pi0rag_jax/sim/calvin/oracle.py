"""When a task is done: by what has changed between two moments of the play table.

Thresholds are CALVIN's: turned by 60 degrees, pushed by 10 cm, lifted by 5 cm (3 cm out of the cabinet), door 15 cm and
drawer 12 cm, touched by whom. Stricter: an unstacked block lies on the table, let go. Laxer: what is pushed into the
drawer may be touched at first, as it is where a task before has pushed it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pi0rag_jax.sim.calvin import scene
from pi0rag_jax.sim.calvin.physics import DRAWER, PLANK, ROBOT, TABLE, Physics
from pi0rag_jax.sim.calvin.table import BLOCKS

TURN_DEG, TILT_DEG, STRAY_M = 60, 30, 0.1  # of a turned block
PUSH_M, SLIDE_M, DRAW_M = 0.1, 0.15, 0.12
LIFT_M = {TABLE: 0.05, PLANK: 0.03, DRAWER: 0.05}
CALM = 1.0  # m/s and rad/s, of a stacked block
_SURFACES = {"table": TABLE, "slider": PLANK, "drawer": DRAWER}


@dataclasses.dataclass(frozen=True)
class Block:
  """A block at a moment."""

  place: tuple[float, float, float]
  wxyz: tuple[float, float, float, float]
  touches: frozenset[str]  # see `physics.touching`
  speed: float  # the greatest of its velocities, m/s or rad/s
  held: bool

  @property
  def on_blocks(self) -> bool:
    """Whether it touches blocks and nothing else."""
    return bool(self.touches) and self.touches <= set(BLOCKS)


@dataclasses.dataclass(frozen=True)
class Facts:
  """A moment, as far as tasks ask for it."""

  blocks: Mapping[str, Block]
  joints: Mapping[str, float]  # of drawer and slider, m
  lights: Mapping[str, bool]

  @classmethod
  def of(cls, physics: Physics) -> "Facts":
    """Returns what is so now."""
    touching, held = physics.touching(), physics.held
    blocks = {}
    for name in BLOCKS:
      place_3, wxyz_4 = physics.object_pose(name)
      speed = float(np.abs(physics.object_velocity(name)).max())
      blocks[name] = Block(tuple(place_3.tolist()), tuple(wxyz_4.tolist()), touching[name], speed, held == name)
    return cls(blocks, {name: physics.joint(name) for name in (scene.DRAWER, scene.SLIDER)},
               {scene.BULB: physics.bulb_on, scene.LED: physics.led.on})

  def plain(self) -> dict[str, Any]:
    """Returns it as nested dictionaries, for `read`."""
    blocks = {name: {**vars(block), "touches": sorted(block.touches)} for name, block in self.blocks.items()}
    return {"blocks": blocks, "joints": dict(self.joints), "lights": dict(self.lights)}

  @classmethod
  def read(cls, values: Mapping[str, Any]) -> "Facts":
    """Returns what `plain` wrote."""
    blocks = {name: Block(tuple(block["place"]), tuple(block["wxyz"]), frozenset(block["touches"]), block["speed"],
                          bool(block["held"])) for name, block in values["blocks"].items()}
    return cls(blocks, dict(values["joints"]), dict(values["lights"]))


def achieved(task: str, start: Facts, end: Facts) -> bool:
  """Returns whether a task was done between two moments."""
  match task.split("_"):
    case ["rotate", block, "block", side]:
      return _turned(start.blocks[block], end.blocks[block], 1 if side == "left" else -1)
    case ["push", block, "block", side]:
      return _pushed(start.blocks[block], end.blocks[block], 1 if side == "left" else -1)
    case ["lift", block, "block", place]:
      return _lifted(start.blocks[block], end.blocks[block], _SURFACES[place])
    case ["move", "slider", side]:
      return (end.joints[scene.SLIDER] - start.joints[scene.SLIDER]) * (1 if side == "left" else -1) > SLIDE_M
    case [("open" | "close") as verb, "drawer"]:
      return (end.joints[scene.DRAWER] - start.joints[scene.DRAWER]) * (1 if verb == "open" else -1) > DRAW_M
    case ["turn", word, light]:
      return start.lights[light] == (word == "off") and end.lights[light] == (word == "on")
    case ["place", "in", place]:
      return any(_placed(start.blocks[name], end.blocks[name], _SURFACES[place]) for name in BLOCKS)
    case ["push", "into", "drawer"]:
      return any(start.blocks[name].touches - {ROBOT} == {TABLE} and DRAWER in end.blocks[name].touches
                 and ROBOT not in end.blocks[name].touches for name in BLOCKS)
    case ["stack", "block"]:
      return any(start.blocks[name].touches.isdisjoint(BLOCKS) and end.blocks[name].on_blocks
                 and end.blocks[name].speed < CALM for name in BLOCKS)
    case ["unstack", "block"]:
      return any(start.blocks[name].on_blocks and TABLE in end.blocks[name].touches and not end.blocks[name].held
                 and end.blocks[name].touches.isdisjoint(BLOCKS) and end.blocks[name].speed < CALM for name in BLOCKS)
  raise ValueError(f"no such task: {task}")


def _turned(start: Block, end: Block, sign: int) -> bool:
  roll, pitch, yaw = turn_between(start, end)
  return (TURN_DEG < sign * yaw < 180 and max(abs(roll), abs(pitch)) < TILT_DEG
          and math.dist(start.place, end.place) <= STRAY_M and bool(end.touches - {ROBOT}))


def turn_between(start: Block, end: Block) -> tuple[float, float, float]:
  """Returns the turn of a block between two moments about x, then y, then z of the table, degrees."""
  w, x, y, z = _product(end.wxyz, (start.wxyz[0], *(-value for value in start.wxyz[1:])))
  roll = math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
  pitch = math.asin(min(max(2 * (w * y - z * x), -1.0), 1.0))
  yaw = math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
  return math.degrees(roll), math.degrees(pitch), math.degrees(yaw)


def _product(first, second) -> tuple[float, float, float, float]:
  (a, b, c, d), (e, f, g, h) = first, second
  return (a * e - b * f - c * g - d * h, a * f + b * e + c * h - d * g, a * g - b * h + c * e + d * f,
          a * h + b * g - c * f + d * e)


def _pushed(start: Block, end: Block, sign: int) -> bool:
  before, after = start.touches - {ROBOT}, end.touches - {ROBOT}
  return bool(before) and before <= after and sign * (end.place[1] - start.place[1]) > PUSH_M


def _lifted(start: Block, end: Block, surface: str) -> bool:
  return surface in start.touches and end.touches == {ROBOT} and end.place[2] - start.place[2] > LIFT_M[surface]


def _placed(start: Block, end: Block, surface: str) -> bool:
  return start.held and start.touches == {ROBOT} and surface in end.touches and ROBOT not in end.touches
