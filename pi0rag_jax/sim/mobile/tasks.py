"""The tasks: what is asked for, in which words, where an episode starts, and when it has succeeded.

An errand is what one episode asks for. Its kind decides the success and the expert's rule; tasks of a different start
share it: `fetch` is `pick_up` from another room.
"""

import dataclasses
import math

import numpy as np

from pi0rag_jax.errors import unknown_name
from pi0rag_jax.sim.mobile import flat, scene
from pi0rag_jax.sim.mobile.physics import Physics

GO, FIND, VISIT, PICK, PUT, OPEN, CLOSE = KINDS = ("go", "find", "visit", "pick", "put", "open", "close")
NAVIGATION, MANIPULATION, COMBINED = "navigation", "manipulation", "combined"
GRASP_HEIGHT_M = 0.045  # of the fingers above what a thing stands on
TRAVEL_LIFT_M, CARRY_LIFT_M = 0.6, 0.95
ARRIVED_M = 0.6  # inside a room, from its inner walls
NEAR_M, FACING_RAD = 1.05, 0.15  # of what was to be found, and of the front of furniture
LIFTED_M, RESTING_M = 0.05, 0.015
OPENED_M, CLOSED_M = 0.2, 0.02
# How things differ from where they belong, and where the robot starts: m and rad, uniform.
_ASIDE_M, _DEEPER_M, _TURNED_RAD = 0.1, 0.03, 0.2
_START_M, _START_AWAY_M, _START_ASIDE_M, _START_RAD = (0.6, 1.7), (0.9, 1.3), 0.35, 0.5


@dataclasses.dataclass(frozen=True)
class Errand:
  """What one episode asks for."""

  kind: str  # one of KINDS
  prompt: str
  thing: str = ""
  furniture: str = ""
  room: str = ""  # where it leads to


@dataclasses.dataclass(frozen=True)
class Task:
  """Errands of a kind that start alike."""

  kind: str
  category: str  # of the plan of a data set
  time_limit: int  # ticks
  away: bool = False  # it starts in another room
  holding: bool = False  # it starts with the thing in the fingers


TASKS = {
  "go_to_room": Task(GO, NAVIGATION, 200, away=True),
  "go_to_object": Task(FIND, NAVIGATION, 250, away=True),
  "go_to_furniture": Task(VISIT, NAVIGATION, 250, away=True),
  "pick_up": Task(PICK, MANIPULATION, 150),
  "place": Task(PUT, MANIPULATION, 150, holding=True),
  "open_drawer": Task(OPEN, MANIPULATION, 150),
  "close_drawer": Task(CLOSE, MANIPULATION, 150),
  "fetch": Task(PICK, COMBINED, 300, away=True),
  "bring": Task(PUT, COMBINED, 500, away=True),
  "go_and_open": Task(OPEN, COMBINED, 300, away=True),
}
DRAWER_ROOM = flat.DRESSER.room


def get_task(name: str) -> Task:
  """Returns a task by name. Errors: Pi0RagError for another one."""
  if name not in TASKS:
    raise unknown_name("task", name, TASKS)
  return TASKS[name]


def draw_errand(task: Task, rng: np.random.Generator) -> Errand:
  """Returns what an episode asks for."""
  pick = lambda names: str(rng.choice(list(names)))  # noqa: E731
  if task.kind == GO:
    room = pick(flat.ROOMS)
    return Errand(GO, f"go to the {room}", room=room)
  if task.kind == VISIT:
    piece = flat.FURNITURE[pick(piece.name for piece in (*flat.OTHERS, flat.DRESSER))]
    return Errand(VISIT, f"go to the {piece.name}", furniture=piece.name, room=piece.room)
  if task.kind in (OPEN, CLOSE):
    return Errand(task.kind, f"{task.kind} the drawer", furniture=flat.DRESSER.name, room=DRAWER_ROOM)
  thing = flat.THINGS[pick(flat.THINGS)]
  if task.kind == PUT:
    table = flat.TABLES[pick(room for room in flat.ROOMS if task.holding or room != thing.room)]
    return Errand(PUT, f"put the {thing.name} on the {table.name}", thing.name, table.name, table.room)
  words = {FIND: "find", PICK: "pick up"}[task.kind]
  return Errand(task.kind, f"{words} the {thing.name}", thing.name, flat.TABLES[thing.room].name, thing.room)


def lay_out(task: Task, errand: Errand, physics: Physics, rng: np.random.Generator) -> None:
  """Puts everything where an episode finds it."""
  physics.reset()
  jitter = lambda most: float(rng.uniform(-most, most))  # noqa: E731
  for thing in flat.THINGS.values():
    place_3 = physics.on(flat.TABLES[thing.room], thing, thing.aside + jitter(_ASIDE_M), jitter(_DEEPER_M))
    physics.place(thing, place_3, jitter(_TURNED_RAD))
  physics.set_drawer(float(rng.uniform(OPENED_M, 0.28)) if errand.kind == CLOSE else 0.0)
  physics.settle()
  base_2, yaw = _start(task, errand, physics, rng)
  if not task.holding:
    physics.place_robot(base_2, yaw, lift=TRAVEL_LIFT_M)
    return
  thing = flat.THINGS[errand.thing]
  opening = (thing.size[0] - 0.001) / scene.FINGER_RANGE_M[1]
  physics.place_robot(base_2, yaw, lift=CARRY_LIFT_M, opening=opening, grips=True)
  ahead_2 = base_2 + scene.GRASP_FORWARD_M * np.array([math.cos(yaw), math.sin(yaw)])
  physics.place(thing, [*ahead_2, CARRY_LIFT_M - GRASP_HEIGHT_M + thing.half_height], yaw)


def _start(task: Task, errand: Errand, physics: Physics, rng: np.random.Generator) -> tuple[np.ndarray, float]:
  """Returns (the base's place float[2], its heading)."""
  if task.away:
    home = flat.THINGS[errand.thing].room if errand.thing else errand.room
    room = str(rng.choice([room for room in flat.ROOMS if room != home]))
    return rng.uniform(*_START_M, 2) * flat.ROOMS[room], float(rng.uniform(-math.pi, math.pi))
  table = flat.FURNITURE[errand.furniture]
  inward_2, place_2 = table.inward, physics.spot(table) if task.holding else target(errand, physics)[0]
  away, aside = rng.uniform(*_START_AWAY_M), rng.uniform(-_START_ASIDE_M, _START_ASIDE_M)
  return (place_2 - away * inward_2 + aside * np.abs(inward_2[::-1]),
          math.atan2(inward_2[1], inward_2[0]) + float(rng.uniform(-_START_RAD, _START_RAD)))


def target(errand: Errand, physics: Physics) -> tuple[np.ndarray, float]:
  """Returns (place float[2], height) that the errand is about now: the thing, then where it belongs."""
  if errand.kind == GO:
    return np.array(flat.ROOMS[errand.room]) * flat.DOOR_M, 0.0
  if errand.kind in (OPEN, CLOSE):
    return physics.handle[:2], float(physics.handle[2])
  if errand.kind == VISIT:
    return flat.FURNITURE[errand.furniture].spot(), 0.0
  if errand.kind == PUT and physics.holds(errand.thing):
    table = flat.FURNITURE[errand.furniture]
    return physics.spot(table), physics.top(table)
  place_3 = physics.thing(errand.thing)
  return place_3[:2], float(place_3[2]) - flat.THINGS[errand.thing].half_height


def succeeded(errand: Errand, physics: Physics) -> bool:
  """Returns whether the errand is done, by the state alone."""
  if errand.kind == GO:
    return physics.room == errand.room and float(np.abs(physics.base).min()) > ARRIVED_M
  if errand.kind in (FIND, VISIT):
    place_2, _ = target(errand, physics)
    ahead, left = physics.in_base(place_2)
    return (physics.room == errand.room and math.hypot(ahead, left) < NEAR_M
            and abs(math.atan2(left, ahead)) < FACING_RAD)
  if errand.kind == OPEN:
    return physics.drawer > OPENED_M
  if errand.kind == CLOSE:
    return physics.drawer < CLOSED_M
  thing, table = flat.THINGS[errand.thing], flat.FURNITURE[errand.furniture]
  place_3 = physics.thing(errand.thing)
  above = float(place_3[2]) - thing.half_height - physics.top(table)
  if errand.kind == PICK:
    return above > LIFTED_M and physics.holds(errand.thing)
  return lies_on_tray(errand, physics) and not physics.touches(errand.thing)


def lies_on_tray(errand: Errand, physics: Physics) -> bool:
  """Returns whether the thing stands where it belongs, whoever touches it."""
  thing, table = flat.THINGS[errand.thing], flat.FURNITURE[errand.furniture]
  place_3 = physics.thing(errand.thing)
  above = float(place_3[2]) - thing.half_height - physics.top(table)
  return bool(np.linalg.norm(place_3[:2] - physics.spot(table)) < flat.TRAY_RADIUS_M and abs(above) < RESTING_M)
