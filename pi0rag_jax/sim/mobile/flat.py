"""The flat: four rooms around a cross of walls, their furniture, five things and where each belongs.

The middle of the flat is the origin; x goes east, y north. Every inner wall has a door in its middle, so that the rooms
form a ring. Furniture stands at the outer walls. All lengths are in m.
"""

import dataclasses

import numpy as np

HALF_M = 3.0  # of the flat's width
DOOR_M, DOOR_HALF_M = 1.5, 0.5  # where doors are along the inner walls, and half their width
# Each one's neighbours in this ring are behind its two doors: the signs of x and y.
ROOMS = {"kitchen": (-1, 1), "living room": (1, 1), "bedroom": (1, -1), "bathroom": (-1, -1)}
SPOT_DEPTH_M = 0.12  # from a table's front edge to where things lie
EAST_WEST, NORTH_SOUTH = 0, 1  # the axis across the wall that a piece of furniture stands at


@dataclasses.dataclass(frozen=True)
class Furniture:
  """A box at an outer wall; its front faces the room."""

  name: str
  room: str
  wall: int  # EAST_WEST: the wall across the x axis
  along: float  # its middle along the wall
  width: float
  depth: float
  height: float
  rgb: tuple[float, float, float]

  @property
  def inward(self) -> np.ndarray:
    """The unit vector float[2] from its front towards its wall."""
    return np.eye(2)[self.wall] * ROOMS[self.room][self.wall]

  def spot(self, aside: float = 0.0, depth: float = 0.0, out: float = 0.0) -> np.ndarray:
    """Returns a place float[2]: `aside` along the wall from its middle, `depth` behind its front edge.

    Args:
      out: by which it stands away from the wall.
    """
    front = HALF_M - self.depth - out
    return self.inward * (front + depth) + np.eye(2)[1 - self.wall] * (self.along + aside)


def _table(name: str, room: str, height: float, rgb: tuple[float, float, float]) -> Furniture:
  return Furniture(name, room, EAST_WEST, 1.5 * ROOMS[room][1], 1.9, 0.45, height, rgb)


TABLES = {table.room: table for table in (
  _table("kitchen counter", "kitchen", 0.75, (0.62, 0.62, 0.66)),
  _table("living room table", "living room", 0.45, (0.55, 0.38, 0.22)),
  _table("bedroom table", "bedroom", 0.55, (0.72, 0.58, 0.42)),
  _table("washstand", "bathroom", 0.65, (0.85, 0.88, 0.9)))}
DRESSER = Furniture("dresser", "bedroom", NORTH_SOUTH, 0.75, 0.7, 0.5, 0.8, (0.45, 0.3, 0.2))
OTHERS = (
  Furniture("fridge", "kitchen", NORTH_SOUTH, -1.3, 0.8, 0.6, 1.5, (0.78, 0.8, 0.82)),
  Furniture("sofa", "living room", NORTH_SOUTH, 1.4, 1.6, 0.7, 0.45, (0.3, 0.42, 0.35)),
  Furniture("bed", "bedroom", NORTH_SOUTH, 2.0, 1.0, 0.9, 0.4, (0.6, 0.45, 0.6)),
  Furniture("bathtub", "bathroom", NORTH_SOUTH, -1.4, 1.6, 0.7, 0.5, (0.7, 0.85, 0.9)))
FURNITURE = {piece.name: piece for piece in (*TABLES.values(), DRESSER, *OTHERS)}
TRAY_RADIUS_M = 0.13  # of the marked place in the middle of every table, where things are put
DRAWER_TRAVEL_M, HANDLE_HEIGHT_M, HANDLE_OUT_M = 0.30, 0.55, 0.09


@dataclasses.dataclass(frozen=True)
class Thing:
  """Something to be handled, at home on a table."""

  name: str
  room: str
  aside: float  # of its home, along the wall from the table's middle
  shape: str  # of MuJoCo
  size: tuple[float, ...]  # its half sizes
  rgb: tuple[float, float, float]

  @property
  def half_height(self) -> float:
    """From its middle to its bottom."""
    return self.size[-1]


THINGS = {thing.name: thing for thing in (
  Thing("mug", "kitchen", -0.55, "cylinder", (0.035, 0.05), (0.85, 0.12, 0.1)),
  Thing("book", "living room", -0.55, "box", (0.03, 0.03, 0.07), (0.1, 0.2, 0.85)),
  Thing("toy", "living room", 0.4, "box", (0.035, 0.035, 0.045), (0.95, 0.85, 0.1)),
  Thing("bottle", "bedroom", 0.55, "cylinder", (0.03, 0.08), (0.1, 0.65, 0.15)),
  Thing("soap", "bathroom", 0.55, "box", (0.032, 0.032, 0.045), (0.65, 0.1, 0.7)))}


def room_at(place_2: np.ndarray) -> str:
  """Returns the room of a place float[2]."""
  signs = tuple(1 if value > 0 else -1 for value in place_2)
  return next(room for room, sign in ROOMS.items() if sign == signs)


def next_room(here: str, there: str) -> str:
  """Returns the room that the way leads to first; to the room across, the way goes around clockwise."""
  ring = list(ROOMS)
  steps = (ring.index(there) - ring.index(here)) % len(ring)
  return ring[(ring.index(here) + (-1 if steps == len(ring) - 1 else 1)) % len(ring)]


def door(here: str, there: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns (middle float[2] of the door between two neighbouring rooms, unit vector float[2] from here to there)."""
  change_2 = (np.array(ROOMS[there]) - np.array(ROOMS[here])) / 2
  middle_2 = np.where(change_2 == 0, np.array(ROOMS[here]) * DOOR_M, 0.0)
  return middle_2, change_2
