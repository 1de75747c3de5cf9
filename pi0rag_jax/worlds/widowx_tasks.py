"""SimplerEnv's four tasks of a WidowX: what stands on the table, in 24 arrangements, and when a task is done.

Prompts and time limits are SimplerEnv's (arXiv 2405.05941), and so is what counts as placed, where nothing stricter is
said; shapes and places are ours. Lengths are in m, angles in rad; x points away from the robot, the table is at 0.
"""

import dataclasses
import math

import numpy as np

TRIALS = 24
# Each arrangement varies by so much to either side: no two seeds are the same.
JITTER_M, JITTER_RAD = 0.012, 0.25
_NEAR, _FAR, _RIGHT, _LEFT = 0.24, 0.38, -0.08, 0.08
_CORNERS = tuple((x, y) for x in (_NEAR, _FAR) for y in (_RIGHT, _LEFT))
_BASKET = (0.31, 0.14)
_SLACK_M, _LIES_M = 0.003, 0.02  # of SimplerEnv's rule


@dataclasses.dataclass(frozen=True)
class Geom:
  """A part of a thing; shapes and sizes are MuJoCo's."""

  shape: str
  size: tuple[float, ...]
  rgb: tuple[float, float, float]
  place: tuple[float, float, float] = (0.0, 0.0, 0.0)
  along_x: bool = False  # a capsule that lies


@dataclasses.dataclass(frozen=True)
class Thing:
  """Something on the table; its frame is in its middle, the long side along x."""

  name: str
  half: tuple[float, float, float]  # extents
  geoms: tuple[Geom, ...]
  held_at: float = 0.0  # along x
  mass: float = 0.05  # kg
  loose: bool = True  # or it stands where it was put
  hollow: bool = False  # things go into it, not onto it
  like_turned: float = math.pi  # the least turn about the vertical after which it is grasped alike


@dataclasses.dataclass(frozen=True)
class Task:
  """Put one thing on or into another."""

  prompt: str  # `{}` is what the thing is called
  thing: Thing
  unseen: Thing  # instead of it, under `unseen_target`
  target: Thing
  time_limit: int  # ticks


@dataclasses.dataclass(frozen=True)
class Arrangement:
  """Where things are at the beginning of an episode."""

  thing: tuple[float, float, float]  # x, y, turn about the vertical
  target: tuple[float, float, float]
  free: tuple[tuple[float, float], ...]  # places where nothing is


def _block(name: str, rgb: tuple[float, float, float]) -> Thing:
  half = (0.02, 0.02, 0.02)
  return Thing(name, half, (Geom("box", half, rgb),), like_turned=math.pi / 2)


_STEEL, _RED, _GREEN, _YELLOW = (0.75, 0.78, 0.8), (0.8, 0.15, 0.12), (0.15, 0.6, 0.2), (0.92, 0.8, 0.1)
SPOON = Thing("spoon", (0.068, 0.017, 0.006), (
  Geom("box", (0.045, 0.006, 0.006), _GREEN, (-0.023, 0.0, 0.0)),
  Geom("ellipsoid", (0.024, 0.017, 0.006), _GREEN, (0.044, 0.0, 0.0))), held_at=-0.023)
FORK = Thing("fork", (0.068, 0.015, 0.006), (
  Geom("box", (0.045, 0.006, 0.006), _RED, (-0.023, 0.0, 0.0)),
  Geom("box", (0.006, 0.015, 0.004), _STEEL, (0.028, 0.0, 0.0)),
  *(Geom("box", (0.017, 0.002, 0.003), _STEEL, (0.051, y, 0.0)) for y in (-0.013, 0.0, 0.013))), held_at=-0.023)
CARROT = Thing("carrot", (0.061, 0.016, 0.016), (
  Geom("capsule", (0.016, 0.03), (0.95, 0.45, 0.08), along_x=True),
  Geom("box", (0.012, 0.008, 0.008), _GREEN, (-0.049, 0.0, 0.0))))
CUCUMBER = Thing("cucumber", (0.06, 0.017, 0.017), (Geom("capsule", (0.017, 0.043), (0.1, 0.35, 0.1), along_x=True),))
EGGPLANT = Thing("eggplant", (0.054, 0.022, 0.022), (
  Geom("ellipsoid", (0.045, 0.022, 0.022), (0.3, 0.1, 0.4)),
  Geom("box", (0.008, 0.01, 0.01), _GREEN, (-0.046, 0.0, 0.0))))
PEPPER = Thing("pepper", (0.049, 0.024, 0.024), (
  Geom("ellipsoid", (0.04, 0.024, 0.024), _RED), Geom("box", (0.007, 0.005, 0.005), _GREEN, (-0.042, 0.0, 0.0))))
TOWEL = Thing("towel", (0.07, 0.07, 0.0015), (Geom("box", (0.07, 0.07, 0.0015), (0.2, 0.3, 0.75)),), loose=False)
PLATE = Thing("plate", (0.06, 0.06, 0.004), (Geom("cylinder", (0.06, 0.004), (0.93, 0.93, 0.9)),), loose=False)
_LONG, _WIDE, _HIGH, _WALL = 0.08, 0.06, 0.025, 0.003
BASKET = Thing("basket", (_LONG, _WIDE, _HIGH), (
  Geom("box", (_LONG, _WIDE, _WALL), _YELLOW, (0.0, 0.0, _WALL - _HIGH)),
  *(Geom("box", (_WALL, _WIDE, _HIGH), _YELLOW, (side * (_LONG - _WALL), 0.0, 0.0)) for side in (-1, 1)),
  *(Geom("box", (_LONG, _WALL, _HIGH), _YELLOW, (0.0, side * (_WIDE - _WALL), 0.0)) for side in (-1, 1))),
  loose=False, hollow=True)
# What no demonstration shows, where nothing else is.
DISTRACTORS = (
  Thing("can", (0.022, 0.022, 0.035), (Geom("cylinder", (0.022, 0.035), (0.85, 0.2, 0.5)),), loose=False),
  Thing("ball", (0.02, 0.02, 0.02), (Geom("sphere", (0.02,), (0.1, 0.75, 0.8)),), loose=False))

TASKS = {
  "spoon_on_towel": Task("put the {} on the towel", SPOON, FORK, TOWEL, 60),
  "carrot_on_plate": Task("put {} on plate", CARROT, CUCUMBER, PLATE, 60),
  "stack_cube": Task("stack the {} on the yellow block", _block("green block", _GREEN),
                     _block("blue block", (0.15, 0.25, 0.8)), _block("yellow block", _YELLOW), 60),
  "eggplant_in_basket": Task("put {} into yellow basket", EGGPLANT, PEPPER, BASKET, 120),
}


def arrange(task: Task, seed: int) -> Arrangement:
  """Returns where things are in the episode of a seed: 24 seeds in a row have all arrangements."""
  trial, rng = seed % TRIALS, np.random.default_rng(seed)
  if task.target.hollow:  # eight places, three turns
    places = [(x, y) for x in (0.22, 0.27, 0.32, 0.37) for y in (-0.11, -0.03)]
    thing, target, turn = places[trial // 3], _BASKET, (trial % 3 - 1) * math.pi / 4
    free = ((0.47, -0.07), (0.2, 0.1))
  else:  # two of the four corners, two turns
    pairs = [(first, second) for first in _CORNERS for second in _CORNERS if first != second]
    (thing, target), turn = pairs[trial // 2], (trial % 2) * task.thing.like_turned / 2
    free = tuple(corner for corner in _CORNERS if corner not in (thing, target))
  shift_22 = rng.uniform(-JITTER_M, JITTER_M, (2, 2))
  target_turn = 0.0 if task.target.hollow else float(rng.uniform(-JITTER_RAD, JITTER_RAD))
  return Arrangement((thing[0] + shift_22[0, 0], thing[1] + shift_22[0, 1],
                      turn + float(rng.uniform(-JITTER_RAD, JITTER_RAD))),
                     (target[0] + shift_22[1, 0], target[1] + shift_22[1, 1], target_turn), free)


def is_over(task: Task, thing: Thing, off_3: np.ndarray) -> bool:
  """Returns whether a thing, so far from the target's middle, is on it, or inside: SimplerEnv's rule of places.

  Onto: no further aside than the target's corner, and its middle as high as it lies there, up to 2 cm. Into: inside
  the walls, its middle no higher than their edge.
  """
  half_3 = np.asarray(task.target.half)
  if task.target.hollow:
    return bool((np.abs(off_3[:2]) < half_3[:2]).all() and -half_3[2] < off_3[2] < half_3[2])
  lies_m = half_3[2] + thing.half[2]
  return bool(np.linalg.norm(off_3[:2]) < np.linalg.norm(half_3[:2]) + _SLACK_M and off_3[2] > 0
              and abs(off_3[2] - lies_m) < _LIES_M)
