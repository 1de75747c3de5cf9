"""Where things are put in the play table's physics, given what is so in symbols."""

import math

import numpy as np

from pi0rag_jax.sim.calvin import scene, symbols
from pi0rag_jax.sim.calvin import table as at
from pi0rag_jax.sim.calvin.physics import Led, Physics
from pi0rag_jax.sim.calvin.symbols import State

_TURN_RAD = math.pi / 8  # CALVIN's, of blocks
_ASIDE_M, _DEEPER_M, _DRAWER_M = 0.015, 0.01, 0.128
_HOME, _HOME_M = (0.46, 0.0, 0.28, 0.0), 0.02  # of the tool, and how far it may be off
_SETTLE_TICKS = 6


def arrange(physics: Physics, state: State, rng: np.random.Generator) -> None:
  """Puts everything where a state says, a little different each time, and lets it settle."""
  physics.reset()
  physics.led = Led(bool(state["led"]))
  physics.set_joint(scene.DRAWER, _DRAWER_M if state["drawer"] == "open" else 0.0)
  physics.set_joint(scene.SLIDER, at.SLIDER_TRAVEL_M if state["slider"] == "left" else 0.0)
  physics.set_joint(scene.SWITCH, at.SWITCH_TRAVEL_M - 0.005 if state["lightbulb"] else 0.005)
  x, y, z, yaw = _HOME
  physics.start_robot((*(np.array([x, y, z]) + rng.uniform(-_HOME_M, _HOME_M, 3)).tolist(), yaw))
  spots = [at.SPOTS_Y_M[i] for i in rng.permutation(len(at.SPOTS_Y_M))]
  for name in at.BLOCKS:
    _put(physics, name, state, spots, rng)
  held = next((name for name in at.BLOCKS if state[name] == symbols.HAND), "")
  if held:
    physics.refresh()
    physics.put_in_hand(held)
  physics.refresh()
  for _ in range(_SETTLE_TICKS):
    physics.tick(np.array([0.0, 0.0, 0.0, 0.0, 0.0 if held else 1.0]))


def _put(physics: Physics, name: str, state: State, spots: list[float], rng: np.random.Generator) -> None:
  """Puts a block where it belongs; the lower of two takes the upper along."""
  place, yaw = state[name], float(rng.uniform(-_TURN_RAD, _TURN_RAD))
  aside, deeper = rng.uniform(-_ASIDE_M, _ASIDE_M), rng.uniform(-_DEEPER_M, _DEEPER_M)
  if place in (symbols.TABLE, symbols.STACKED_BOTTOM):
    x, y = at.SPOT_X_M + deeper, spots.pop() + aside
    physics.place_object(name, (x, y, at.TOP_M + at.HALF_HEIGHT_M), yaw)
    if place == symbols.STACKED_BOTTOM:
      top = next(other for other in at.BLOCKS if state[other] == symbols.STACKED_TOP)
      physics.place_object(top, (x, y, at.TOP_M + 3 * at.HALF_HEIGHT_M), yaw)
  elif place in symbols.SLIDER.values():
    side = 1 if place == symbols.SLIDER_LEFT else -1
    y = physics.table.cabinet_y + side * (at.HALF_Y_M + 0.005) + aside / 2
    physics.place_object(name, (at.CABINET_X_M + deeper / 2, y, at.PLANK_M + at.HALF_HEIGHT_M), yaw / 2)
  elif place == symbols.DRAWER:
    out = physics.joint(scene.DRAWER)
    x = at.EDGE_X_M - out + at.DRAWER_DEPTH_M / 2 - 0.003 + deeper / 2
    y = 4 * aside + (0.0 if state["drawer"] == "open" else 0.01)
    physics.place_object(name, (x, y, at.DRAWER_FLOOR_M + at.HALF_HEIGHT_M), yaw / 2)
