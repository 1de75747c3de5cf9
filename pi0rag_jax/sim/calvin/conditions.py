"""What differs from the play table of the demonstrations: CALVIN's splits A to D, and faults of the robot."""

import dataclasses
from typing import Any

from pi0rag_jax.sim.calvin.table import TABLES
from pi0rag_jax.sim.scene import BASE_CAMERA, WRIST_CAMERA
from pi0rag_jax.worlds.mujoco_model import Shift, turned
from pi0rag_jax.worlds.world import NOMINAL

DEFAULT_TABLE = "D"


@dataclasses.dataclass(frozen=True)
class Setting:
  """A condition: which table, and what else differs."""

  shift: Shift
  table: str = DEFAULT_TABLE  # of TABLES


def _shifted(description: str, **changes: Any) -> Setting:
  return Setting(Shift(description, **changes))


CONDITIONS = {
  NOMINAL: Setting(Shift("the play table of the demonstrations: D")),
  **{name: Setting(Shift(f"table {name}: colours, and where cabinet, button and switch are"), name) for name in TABLES},
  "dim_warm_light": _shifted("the light is dimmer and warmer", light_rgb=(0.75, 0.68, 0.58)),
  "camera_shift": _shifted("both cameras were knocked: the picture moves by a pixel or two",
                           cameras=turned(**{BASE_CAMERA: (0.02, 0.02), WRIST_CAMERA: (0.03, -0.03)})),
  "slippery": _shifted("blocks slip in the fingers", friction=0.5),
  "heavy": _shifted("blocks weigh four times as much", mass=4.0),
  "actuator_delay": _shifted("the arm gets its actions 0.15 s late", delay_ticks=3),
}
