"""What differs from the flat and the robot of the demonstrations."""

import dataclasses

from pi0rag_jax.sim.mobile.scene import FRONT_CAMERA, GRIPPER_CAMERA
from pi0rag_jax.worlds.mujoco_model import Shift, turned
from pi0rag_jax.worlds.world import NOMINAL


@dataclasses.dataclass(frozen=True)
class FlatShift(Shift):
  """A shift of any MuJoCo model, and what only this one has."""

  wheels: float = 1.0  # which part of the commanded velocities becomes motion
  drift: float = 0.0  # by which the base turns as it drives, rad per m
  table_out_m: float = 0.0  # by which tables stand away from their walls


CONDITIONS = {
  NOMINAL: FlatShift("the flat of the demonstrations, by day"),
  "night": FlatShift("it is night: dim and blue", light_rgb=(0.45, 0.5, 0.65)),
  "artificial_light": FlatShift("lamps are on: a little dimmer and warm", light_rgb=(0.95, 0.8, 0.6)),
  "camera_shift": FlatShift("the front camera was knocked: the picture moves by three pixels",
                            turned(**{FRONT_CAMERA: (0.08, 0.08)})),
  "gripper_camera_shift": FlatShift("the gripper's camera was knocked: the picture moves by three pixels",
                                    turned(**{GRIPPER_CAMERA: (0.08, 0.08)})),
  "slippery_wheels": FlatShift("wheels slip: a fifth of every motion is lost, and the base pulls to the left",
                               wheels=0.8, drift=0.15),
  "moved_tables": FlatShift("tables stand 6 cm further from their walls, with what is on them", table_out_m=0.06),
  "table_high": FlatShift("tables are 2 cm higher, with what is on them", table_m=0.02),
  "slippery": FlatShift("things slip in the fingers", friction=0.5),
  "heavy": FlatShift("things weigh twice as much", mass=2.0),
  "actuator_delay": FlatShift("the robot gets its actions 0.3 s late", delay_ticks=3),
}
