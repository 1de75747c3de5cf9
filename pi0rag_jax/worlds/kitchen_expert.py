"""An expert for the kitchen's tasks: a rule from the present state to where the fingertips go next.

It remembers nothing, so that it may take over at any moment. Doors are gripped and pulled; the rest is pushed by closed
fingers, from behind.
"""

import dataclasses

import mujoco
import numpy as np

from pi0rag_jax.worlds import kitchen_scene as scene
from pi0rag_jax.worlds.kitchen_arm import Arm
from pi0rag_jax.worlds.rotations import angle_between

OPEN, CLOSED = 1.0, -1.0


@dataclasses.dataclass(frozen=True)
class Way:
  """How a thing is moved by the hand."""

  points: tuple[float, float, float]  # where the fingers point
  behind_m: float = 0.0  # from where they push: so far from the thing's middle; 0 grips and pulls
  off_m: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of what they touch, from the task's site
  beside_m: float = 0.04  # by which they may miss its middle when they push


WAYS = {
  "microwave": Way((-0.3, 0.95, -0.6)),
  "kettle": Way((0.0, 0.7, -0.9), 0.15, (0.0, 0.0, -0.18), 0.012),  # it turns where it is pushed beside the middle
  "light_switch": Way((0.0, 1.0, -0.4), 0.06),
  "slide_cabinet": Way((0.0, 1.0, -0.3), 0.055, (0.0, 0.0, -0.03)),
  "bottom_burner": Way((0.0, 1.0, -0.4), 0.05, (0.0, 0.0, 0.035)),
  "top_burner": Way((0.0, 1.0, -0.4), 0.05, (0.0, 0.0, 0.035)),
  "hinge_cabinet": Way((0.0, 1.0, 0.0)),
}
_LOST_RAD = 1.2  # a hand that is turned further away goes home first
_CLEAR_M, _BACK_M = 0.07, 0.15  # fingertips pass so far before things at least, and back off so far
_ASIDE_M = 0.025  # of the line on which they go in
_EARLY_M = 0.02  # they push from so far before where they should begin
_AT_M, _GRIPPED_M = 0.03, 0.05  # of a handle they close; how far open they are around it, at most
_AHEAD_M = 0.06  # they are sent so far ahead to push or pull


class Expert:
  """Does the task that is named, whatever was done before."""

  def __init__(self, model: mujoco.MjModel):
    self._model, self._arm = model, Arm(model)
    self._jacobian = np.empty((3, model.nv))

  def act(self, task: str, data: mujoco.MjData) -> np.ndarray:
    """Returns the next action float[9], as `robots.kitchen` has them."""
    self._arm.look(data)
    way = WAYS[task]
    at_3 = data.site(scene.TASKS[task].site).xpos + way.off_m
    along_3, turn_33 = self._along(task, data, at_3), _pointing(np.asarray(way.points))
    if way.behind_m:
      return self._push(way, at_3, along_3, turn_33)
    return self._pull(at_3, along_3, turn_33)

  def _along(self, task: str, data: mujoco.MjData, at_3: np.ndarray) -> np.ndarray:
    """Returns float[3] of length 1, which way what is touched goes when the task gets done."""
    asked = scene.TASKS[task]
    if task == scene.KETTLE:
      along_3 = np.subtract(asked.goal[:3], data.qpos[list(asked.entries[:3])]) * (1.0, 1.0, 0.0)
    else:
      joint = self._model.joint(asked.joint)
      address, dof = int(joint.qposadr[0]), int(joint.dofadr[0])
      mujoco.mj_jac(self._model, data, self._jacobian, None, at_3, int(joint.bodyid[0]))
      along_3 = self._jacobian[:, dof] * np.sign(asked.goal[asked.entries.index(address)] - data.qpos[address])
    return along_3 / max(float(np.linalg.norm(along_3)), 1e-9)

  def _push(self, way: Way, at_3: np.ndarray, along_3: np.ndarray, turn_33: np.ndarray) -> np.ndarray:
    arm, begin_3 = self._arm, at_3 - way.behind_m * along_3
    off_3 = arm.tip_3 - begin_3
    pushed_m = float(off_3 @ along_3)
    beside_3 = off_3 - pushed_m * along_3
    if -_EARLY_M < pushed_m < way.behind_m and np.linalg.norm(beside_3) < way.beside_m:
      return arm.towards(arm.tip_3 + _AHEAD_M * along_3 - beside_3, turn_33, CLOSED)
    return self._reach(begin_3, turn_33, CLOSED)

  def _pull(self, at_3: np.ndarray, along_3: np.ndarray, turn_33: np.ndarray) -> np.ndarray:
    arm = self._arm
    if np.linalg.norm(arm.tip_3 - at_3) > _AT_M:
      return self._reach(at_3, turn_33, OPEN)
    ahead_m = _AHEAD_M if arm.opening_m < _GRIPPED_M else 0.0
    return arm.towards(at_3 + ahead_m * along_3, turn_33, CLOSED)

  def _reach(self, place_3: np.ndarray, turn_33: np.ndarray, grip: float) -> np.ndarray:
    """Returns the action on the way to a place: back, across, in."""
    arm, points_3 = self._arm, turn_33[:, 2]
    if angle_between(arm.turn_33, turn_33) > _LOST_RAD:
      return arm.home()
    off_3 = arm.tip_3 - place_3
    in_m = float(off_3 @ points_3)
    if np.linalg.norm(off_3 - in_m * points_3) < _ASIDE_M:
      return arm.towards(place_3, turn_33, grip)
    if in_m > -_CLEAR_M:
      return arm.towards(arm.tip_3 - (in_m + _BACK_M) * points_3, turn_33, grip)
    return arm.towards(place_3 - (_CLEAR_M + _ASIDE_M) * points_3, turn_33, grip)


def _pointing(points_3: np.ndarray) -> np.ndarray:
  """Returns float[3, 3], how a hand is turned whose fingers point there and open to the sides."""
  points_3 = points_3 / np.linalg.norm(points_3)
  fingers_3 = np.cross(points_3, (0.0, 0.0, 1.0))
  fingers_3 /= np.linalg.norm(fingers_3)
  return np.stack([np.cross(fingers_3, points_3), fingers_3, points_3], axis=1)
