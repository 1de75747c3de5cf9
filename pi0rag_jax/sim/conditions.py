"""Conditions: what differs between the robot a policy was trained on and the one it now works with."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.worlds.world import MAX_DELAY_TICKS, CameraShift

OBJECT_REGIONS = ("full", "held_out", "seen")
# The greatest slope of the cubic that fades the calibration offset, per unit of its argument.
SMOOTHSTEP_SLOPE = 1.5
TABLE_RGB = (0.42, 0.36, 0.3)


@dataclasses.dataclass(frozen=True)
class Calibration:
  """A wrong kinematic model in a disc of the table: the real tool is `offset_m` away from the believed one.

  The offset is whole within `core` of the radius and fades smoothly to zero at the radius.
  """

  offset_m: tuple[float, float, float] = (0.0, 0.0, 0.0)  # base frame
  center_m: tuple[float, float] = (0.5, 0.0)
  radius_m: float = 0.15
  core: float = 0.5

  def __post_init__(self):
    slope = SMOOTHSTEP_SLOPE * float(np.linalg.norm(self.offset_m)) / (self.radius_m * (1 - self.core))
    if slope >= 0.9:
      raise Pi0RagError(
        f"calibration offset {self.offset_m} m fades too steeply (slope {slope:.2f}, below 0.9 allowed):"
        " lower offset_m or core, or raise radius_m"
      )

  def displacement(self, x: float, y: float) -> tuple[float, float, float]:
    """Returns real minus believed tool position [3] in m, at the believed position (x, y)."""
    distance = ((x - self.center_m[0]) ** 2 + (y - self.center_m[1]) ** 2) ** 0.5 / self.radius_m
    fade = min(max((1.0 - distance) / (1.0 - self.core), 0.0), 1.0)
    weight = fade * fade * (3.0 - 2.0 * fade)
    return weight * self.offset_m[0], weight * self.offset_m[1], weight * self.offset_m[2]

  @property
  def active(self) -> bool:
    """Whether there is any offset."""
    return any(self.offset_m)


@dataclasses.dataclass(frozen=True)
class Condition:
  """One named way in which the world differs from the demonstrations. It applies at reset."""

  name: str
  description: str
  # Real minus believed tool centre in the hand frame (x: palm normal, y: closing axis, z: towards the tips).
  tool_offset_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
  wrist_camera: CameraShift = CameraShift()
  base_camera: CameraShift = CameraShift()
  object_mass_scale: float = 1.0
  friction_scale: float = 1.0  # of objects and finger pads
  object_region: str = "seen"  # where the target object starts: full, held_out, seen (full without held_out)
  calibration: Calibration = Calibration()
  actuator_delay_ticks: int = 0  # of 50 ms, by which the servos get their targets late
  light_rgb: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factor on the light, per colour
  table_rgb: tuple[float, float, float] = TABLE_RGB

  def __post_init__(self):
    if not 0 <= self.actuator_delay_ticks <= MAX_DELAY_TICKS:
      raise Pi0RagError(f"actuator_delay_ticks is {self.actuator_delay_ticks}, allowed: 0..{MAX_DELAY_TICKS}")
    if self.object_region not in OBJECT_REGIONS:
      raise unknown_name("object region", self.object_region, OBJECT_REGIONS)


def _registry(*conditions: Condition) -> Mapping[str, Condition]:
  return {condition.name: condition for condition in conditions}


CONDITIONS = _registry(
  Condition("nominal", "the world of the demonstrations"),
  Condition("tool_offset", "the fingers sit beside where the controller believes", tool_offset_m=(0.0, 0.0095, 0.0)),
  Condition("tool_offset_8mm", "the same, by a little less", tool_offset_m=(0.0, 0.0078, 0.0)),
  Condition("tool_offset_13mm", "the same, by more", tool_offset_m=(0.0, 0.013, 0.0)),
  Condition(
    "camera_shift",
    "both cameras were knocked: the picture moves by a pixel or two",
    wrist_camera=CameraShift(rotation_rad=(0.022, -0.022, 0.0)),
    base_camera=CameraShift(rotation_rad=(0.012, 0.012, 0.0)),
  ),
  Condition(
    "camera_shift_double",
    "both cameras were knocked twice as far",
    wrist_camera=CameraShift(rotation_rad=(0.044, -0.044, 0.0)),
    base_camera=CameraShift(rotation_rad=(0.024, 0.024, 0.0)),
  ),
  Condition(
    "wrist_camera_turn",
    "the wrist camera was turned in its mount by a good half degree about two axes",
    wrist_camera=CameraShift(rotation_rad=(-0.01, 0.01, 0.0)),
  ),
  Condition(
    "wrist_camera_turn_2deg",
    "the same, by a good degree about two axes",
    wrist_camera=CameraShift(rotation_rad=(-0.022, 0.022, 0.0)),
  ),
  Condition(
    "wrist_camera_turn_3deg",
    "the same, by two degrees about two axes",
    wrist_camera=CameraShift(rotation_rad=(-0.035, 0.035, 0.0)),
  ),
  Condition(
    "slippery_heavy", "objects are heavy and slip in the fingers", object_mass_scale=6.0, friction_scale=0.15
  ),
  Condition("slippery", "objects slip in the fingers", friction_scale=0.25),
  Condition("unseen_region", "the target starts where no demonstration had it", object_region="held_out"),
  Condition(
    "calibration_region",
    "in one part of the table the real tool is beside the believed one",
    calibration=Calibration(offset_m=(0.0, 0.025, 0.0), center_m=(0.5, -0.09), radius_m=0.16),
  ),
  Condition("dim_warm_light", "the light is a little dimmer and warmer", light_rgb=(0.94, 0.88, 0.8)),
  Condition("actuator_delay", "the servos get their targets 0.15 s late", actuator_delay_ticks=3),
  Condition("actuator_delay_200ms", "the servos get their targets 0.2 s late", actuator_delay_ticks=4),
)


def condition_names() -> tuple[str, ...]:
  """Returns the names of all registered conditions."""
  return tuple(CONDITIONS)


def get_condition(condition: str | Condition) -> Condition:
  """Returns the registered condition of that name; a Condition is returned as it is."""
  if isinstance(condition, Condition):
    return condition
  if condition not in CONDITIONS:
    raise unknown_name("condition", condition, CONDITIONS)
  return CONDITIONS[condition]
