"""What the flat's physics answers: where things are, what the fingers hold, and one control tick."""

import math

import mujoco
import numpy as np

from pi0rag_jax.robots.mobile import TICK_S
from pi0rag_jax.sim.mobile import flat, scene
from pi0rag_jax.worlds.mujoco_model import work_out

_TICK_STEPS = round(TICK_S / scene.STEP_S)
# By which commanded places move at most: m per s.
_LIFT_SPEED, _REACH_SPEED, _FINGER_SPEED = 0.5, 0.4, 0.3


class Physics:
  """A model of the flat and its state."""

  def __init__(self, model: mujoco.MjModel, *, wheels: float = 1.0, drift: float = 0.0):
    """Takes a model.

    Args:
      wheels: which part of the commanded velocities becomes motion.
      drift: by which the base turns as it drives, rad per m.
    """
    self.model, self.data = model, mujoco.MjData(model)
    self._wheels, self._drift = wheels, drift
    self._at = {name: int(model.joint(name).qposadr[0])
                for name in (*scene.JOINTS, "right_finger", scene.DRAWER, *flat.THINGS)}
    self._fingers = [model.geom(name).id for name in ("left_finger", "right_finger")]
    self._geoms = {name: model.geom(name).id for name in (*flat.THINGS, "handle")}

  def reset(self) -> None:
    """Puts everything at rest: things at home, the base in the middle of the living room, the drawer closed."""
    mujoco.mj_resetData(self.model, self.data)
    self.place_robot(np.array(flat.ROOMS["living room"]) * 1.5, 0.0)
    for thing in flat.THINGS.values():
      self.place(thing, self.on(flat.TABLES[thing.room], thing, thing.aside))

  def place_robot(self, place_2, yaw: float, *, lift: float = 0.6, opening: float = 1.0, grips: bool = False) -> None:
    """Puts the base there, at rest, with the arm drawn in and the fingers so, told to close where it grips."""
    finger = opening * scene.FINGER_RANGE_M[1]
    values = {"x": place_2[0], "y": place_2[1], "yaw": yaw, "lift": lift, "reach": 0.0, "left_finger": finger,
              "right_finger": finger}
    for name, value in values.items():
      self.data.qpos[self._at[name]] = value
    self.data.ctrl[:] = (0.0, 0.0, 0.0, lift, 0.0, -scene.SQUEEZE_M if grips else finger)

  def place(self, thing: flat.Thing, place_3, yaw: float = 0.0) -> None:
    """Puts a thing there, upright."""
    at = self._at[thing.name]
    self.data.qpos[at:at + 7] = (*place_3, math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))

  def set_drawer(self, out_m: float) -> None:
    """Opens the drawer so far."""
    self.data.qpos[self._at[scene.DRAWER]] = out_m

  def settle(self) -> None:
    """Works out what follows from the places that were set."""
    work_out(self.model, self.data)

  def on(self, table: flat.Furniture, thing: flat.Thing, aside: float = 0.0, deeper: float = 0.0) -> np.ndarray:
    """Returns where a thing is, float[3], that stands on a table, as high and as far from its wall as it is now."""
    return np.array([*self.spot(table, aside, deeper), self.top(table) + thing.half_height])

  def spot(self, table: flat.Furniture, aside: float = 0.0, deeper: float = 0.0) -> np.ndarray:
    """Returns a place float[2] on a table as it stands now; (0, 0) is the middle of its tray."""
    inward_2 = table.inward * (flat.SPOT_DEPTH_M + deeper - table.depth / 2)
    return self.model.body(table.name).pos[:2] + inward_2 + np.eye(2)[1 - table.wall] * aside

  def top(self, table: flat.Furniture) -> float:
    """Returns how high a table's top is now, m."""
    return float(self.model.body(table.name).pos[2]) + table.height / 2

  @property
  def base(self) -> np.ndarray:
    """Where the base is, float[2]."""
    return self.data.qpos[[self._at["x"], self._at["y"]]]

  @property
  def yaw(self) -> float:
    """Its heading, rad, counterclockwise from east."""
    return float(self.data.qpos[self._at["yaw"]])

  @property
  def room(self) -> str:
    """The room that the base is in."""
    return flat.room_at(self.base)

  @property
  def lift(self) -> float:
    """How high the fingers are, m."""
    return float(self.data.qpos[self._at["lift"]])

  @property
  def reach(self) -> float:
    """How far the arm is extended, m."""
    return float(self.data.qpos[self._at["reach"]])

  @property
  def opening(self) -> float:
    """How far the fingers are apart, 0 to 1."""
    return float(self.data.qpos[self._at["left_finger"]]) / scene.FINGER_RANGE_M[1]

  @property
  def drawer(self) -> float:
    """How far the drawer is out, m."""
    return float(self.data.qpos[self._at[scene.DRAWER]])

  @property
  def handle(self) -> np.ndarray:
    """Where the drawer's handle is, float[3]."""
    return self.data.geom_xpos[self._geoms["handle"]].copy()

  def thing(self, name: str) -> np.ndarray:
    """Returns where a thing is, float[3]."""
    return self.data.qpos[self._at[name]:self._at[name] + 3].copy()

  def in_base(self, place_2) -> np.ndarray:
    """Returns a place as the base sees it, float[2]: ahead, to the left."""
    away_2, cos, sin = np.asarray(place_2) - self.base, math.cos(self.yaw), math.sin(self.yaw)
    return np.array([cos * away_2[0] + sin * away_2[1], cos * away_2[1] - sin * away_2[0]])

  def holds(self, name: str) -> bool:
    """Returns whether both fingers touch a thing, or the 'handle'."""
    held, touching = self._geoms[name], set()
    for first, second in self.data.contact.geom:
      if held in (first, second):
        touching.add(int(second if first == held else first))
    return touching.issuperset(self._fingers)

  def touches(self, name: str) -> bool:
    """Returns whether a finger touches a thing."""
    held = self._geoms[name]
    return any(held in pair and not pair.isdisjoint(self._fingers)
               for pair in map(set, self.data.contact.geom.tolist()))

  def tick(self, action_A: np.ndarray) -> None:
    """Moves on by one control tick; commanded places are approached at the speed of their motors."""
    forward, turn, *places = action_A.tolist()
    forward, turn = forward * self._wheels, turn * self._wheels + self._drift * forward
    wanted = (*places[:2], places[2] * (scene.FINGER_RANGE_M[1] + scene.SQUEEZE_M) - scene.SQUEEZE_M)
    for at, (place, speed) in enumerate(zip(wanted, (_LIFT_SPEED, _REACH_SPEED, _FINGER_SPEED)), start=3):
      step = speed * TICK_S
      self.data.ctrl[at] += min(max(place - self.data.ctrl[at], -step), step)
    self.data.ctrl[2] = turn
    for _ in range(_TICK_STEPS):
      self.data.ctrl[0], self.data.ctrl[1] = forward * math.cos(self.yaw), forward * math.sin(self.yaw)
      mujoco.mj_step(self.model, self.data)
    work_out(self.model, self.data)
