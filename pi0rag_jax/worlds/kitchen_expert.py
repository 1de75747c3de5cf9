"""An expert for the kitchen's tasks: a rule from the present state to where the fingertips go next.

It remembers nothing, so that it may take over at any moment. What swings far is gripped and pulled; the rest is pushed
by closed fingers, from beside it.
"""

import dataclasses

import mujoco
import numpy as np

from pi0rag_jax.worlds import kitchen_scene as scene
from pi0rag_jax.worlds.kitchen_arm import Arm

OPEN, CLOSED = 1.0, -1.0


@dataclasses.dataclass(frozen=True)
class Way:
  """How a thing is touched."""

  points: tuple[float, float, float]  # where the fingers point on the way in
  beside_m: float = 0.0  # by which the fingertips are behind it when they begin to push; 0 grips and pulls
  off_m: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of the point that is touched from the site
  clear_m: float = 0.1  # from which they go in


WAYS = {
  "microwave": Way((-0.3, 0.95, -0.6)),
  "kettle": Way((0.0, 1.0, -0.6), 0.15, (0.0, 0.0, -0.18)),
  "light_switch": Way((0.0, 1.0, -0.4), 0.06),
  "slide_cabinet": Way((0.0, 1.0, -0.3), 0.055, (0.0, 0.0, -0.03)),
  "bottom_burner": Way((0.0, 1.0, -0.4), 0.05, (0.0, 0.0, 0.035)),
  "top_burner": Way((0.0, 1.0, -0.4), 0.05, (0.0, 0.0, 0.035)),
  "hinge_cabinet": Way((0.0, 1.0, 0.0)),
}
_ASIDE_M, _AT_M = 0.025, 0.015
_AHEAD_M = 0.06  # so far ahead of themselves fingertips are sent that push or pull
_GRIPPED_M = 0.05  # opening, at most


class Expert:
  """Does a task; of several the one that is named."""

  def __init__(self, model: mujoco.MjModel):
    self._model, self._arm = model, Arm(model)
    self._jacobian = np.empty((3, model.nv))

  def act(self, task: str, data: mujoco.MjData) -> np.ndarray:
    """Returns the next action float[9], as `robots.kitchen` has them."""
    self._arm.look(data)
    way, site = WAYS[task], self._model.site(scene.TASKS[task].site).id
    at_3 = data.site_xpos[site] + way.off_m
    along_3 = self._along(task, data, at_3)
    points_3 = np.asarray(way.points) / np.linalg.norm(way.points)
    return (self._push if way.beside_m else self._pull)(way, at_3, along_3, points_3)

  def _along(self, task: str, data: mujoco.MjData, at_3: np.ndarray) -> np.ndarray:
    """Returns float[3], which way the point goes when its task is being done."""
    asked = scene.TASKS[task]
    if task == "kettle":
      off_3 = np.subtract(asked.goal[:3], data.qpos[scene.KETTLE][:3]) * (1.0, 1.0, 0.0)
      return off_3 / np.linalg.norm(off_3)
    joint = self._model.joint(asked.joint)
    mujoco.mj_jac(self._model, data, self._jacobian, None, at_3, joint.bodyid[0])
    goal = asked.goal[asked.entries.index(int(joint.qposadr[0]))]
    off_3 = self._jacobian[:, joint.dofadr[0]] * np.sign(goal - data.qpos[joint.qposadr[0]])
    return off_3 / np.linalg.norm(off_3)

  def _push(self, way: Way, at_3: np.ndarray, along_3: np.ndarray, points_3: np.ndarray) -> np.ndarray:
    arm = self._arm
    turn_33 = _pointing(points_3)
    start_3 = at_3 - way.beside_m * along_3
    off_3 = arm.tip_3 - start_3
    behind = off_3 @ along_3  # beyond the start, towards the thing
    if -0.02 < behind < way.beside_m and np.linalg.norm(off_3 - behind * along_3) < 0.04:
      return arm.towards(arm.tip_3 + _AHEAD_M * along_3 - (off_3 - behind * along_3), turn_33, CLOSED)
    return self._reach(way, start_3, points_3, turn_33, CLOSED)

  def _pull(self, way: Way, at_3: np.ndarray, along_3: np.ndarray, points_3: np.ndarray) -> np.ndarray:
    arm = self._arm
    turn_33 = _pointing(points_3)
    off_3 = arm.tip_3 - at_3
    if np.linalg.norm(off_3) < 0.03:
      if arm.opening_m < _GRIPPED_M:
        return arm.towards(at_3 + _AHEAD_M * along_3, turn_33, CLOSED)
      return arm.towards(at_3, turn_33, CLOSED)
    return self._reach(way, at_3, points_3, turn_33, OPEN)

  def _reach(self, way: Way, place_3: np.ndarray, points_3: np.ndarray, turn_33: np.ndarray, grip: float) -> np.ndarray:
    """Returns the action on the way to a place: back, across, in."""
    arm = self._arm
    off_3 = arm.tip_3 - place_3
    along = off_3 @ points_3
    aside_3 = off_3 - along * points_3
    if np.linalg.norm(aside_3) < _ASIDE_M:
      return arm.towards(place_3, turn_33, grip)
    if along > -way.clear_m + 0.03:
      return arm.towards(arm.tip_3 - (along + way.clear_m + 0.05) * points_3, turn_33, grip)
    return arm.towards(place_3 - way.clear_m * points_3, turn_33, grip)


def _pointing(points_3: np.ndarray) -> np.ndarray:
  """Returns float[3, 3], how a hand is turned whose fingers point there and open sideways."""
  fingers_3 = np.cross((0.0, 0.0, 1.0), -points_3)
  fingers_3 /= np.linalg.norm(fingers_3)
  return np.stack([np.cross(fingers_3, points_3), fingers_3, points_3], axis=1)
