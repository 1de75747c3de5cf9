"""The kitchen's Franka, moved at the fingertips: where they go in a tick, as joint velocities."""

import mujoco
import numpy as np

from pi0rag_jax.worlds import kitchen_scene as scene
from pi0rag_jax.worlds.rotations import rotation_vector

_TIP_M = 0.03  # of the point between the fingertips, beyond the site
_STEP_M, _TURN_RAD = 0.05, 0.25  # most per tick
_FOLLOWS = 0.6  # of what a joint is sent ahead, it does so much in a tick
_LIMIT_RAD = 0.02  # that joints keep from the ends of their ranges
_DAMPING, _REST_GAIN = 1e-3, 0.05
_REST_Q = np.array([0.15, -1.4, 1.7, -2.3, 0.3, 0.8, 1.6])  # rad; the elbow is out to the right


class Arm:
  """A model's arm at the state of the last `look`."""

  def __init__(self, model: mujoco.MjModel):
    self._model, self._site, self._body = model, model.site(scene.TIP).id, model.body(scene.HAND).id
    self._low, self._high = model.jnt_range[scene.ARM].T + np.array([[_LIMIT_RAD], [-_LIMIT_RAD]])
    self._stiffness = model.actuator_gainprm[scene.ARM, 0]
    self._jacobian = np.empty((6, model.nv))

  def look(self, data: mujoco.MjData) -> None:
    """Takes up a state, which is not kept."""
    self.turn_33 = data.site_xmat[self._site].reshape(3, 3).copy()
    self.tip_3 = data.site_xpos[self._site] + _TIP_M * self.turn_33[:, 2]
    self.opening_m = float(data.qpos[scene.FINGERS].sum())
    mujoco.mj_jac(self._model, data, self._jacobian[:3], self._jacobian[3:], self.tip_3, self._body)
    self._q, self._bias = data.qpos[scene.ARM].copy(), data.qfrc_bias[scene.ARM].copy()

  def towards(self, place_3: np.ndarray, turn_33: np.ndarray, grip: float) -> np.ndarray:
    """Returns the action float[9] that moves the fingertips there, and turns the hand as far as that leaves it free.

    Args:
      grip: of the fingers, -1 to close and 1 to open them.
    """
    off_3, off_rad_3 = place_3 - self.tip_3, rotation_vector(turn_33 @ self.turn_33.T)
    off_3 *= min(1.0, _STEP_M / max(float(np.linalg.norm(off_3)), 1e-9))
    off_rad_3 *= min(1.0, _TURN_RAD / max(float(np.linalg.norm(off_rad_3)), 1e-9))
    change_7, free_7 = np.zeros(7), np.ones(7, bool)
    for _ in range(7):  # joints at their ends are left out, and the others do without them
      change_7[free_7] = self._change(off_3, off_rad_3, change_7, free_7)
      within_7 = np.clip(change_7, self._low - self._q, self._high - self._q)
      beyond_7 = free_7 & (np.abs(within_7 - change_7) > 1e-6)
      change_7 = within_7
      if not beyond_7.any():
        break
      free_7 &= ~beyond_7
    return np.concatenate([self._velocities(change_7), [grip, grip]])

  def home(self) -> np.ndarray:
    """Returns the action float[9] that brings the joints to where the arm rests, with open fingers."""
    change_7 = np.clip(_REST_Q - self._q, -_TURN_RAD, _TURN_RAD)
    return np.concatenate([self._velocities(change_7), [1.0, 1.0]])

  def _change(self, off_3: np.ndarray, off_rad_3: np.ndarray, fixed_7: np.ndarray, free_7: np.ndarray) -> np.ndarray:
    """Returns the changes of the free joints, rad: the place comes first, then the turn, then where the arm rests."""
    all_67 = self._jacobian[:, scene.ARM]
    off_6 = np.concatenate([off_3, off_rad_3]) - all_67 @ np.where(free_7, 0.0, fixed_7)
    places_3F, turns_3F, rest_F = all_67[:3, free_7], all_67[3:, free_7], (_REST_Q - self._q)[free_7]
    change_F = _inverse(places_3F) @ off_6[:3]
    idle_FF = np.eye(len(rest_F)) - np.linalg.pinv(places_3F) @ places_3F
    change_F += idle_FF @ (_inverse(turns_3F @ idle_FF) @ (off_6[3:] - turns_3F @ change_F))
    idle_FF = np.eye(len(rest_F)) - np.linalg.pinv(all_67[:, free_7]) @ all_67[:, free_7]
    return change_F + idle_FF @ (_REST_GAIN * rest_F)

  def _velocities(self, change_7: np.ndarray) -> np.ndarray:
    """Returns float[7] from -1 to 1: a change of the joints, rad, and what holds the arm up."""
    ahead = scene.SPEED * scene.TICK_S
    held_7, moved_7 = self._bias / self._stiffness / ahead, change_7 / _FOLLOWS / ahead
    room = np.min((1.0 - np.sign(moved_7) * held_7) / np.maximum(np.abs(moved_7), 1e-9))
    return np.clip(held_7 + min(1.0, max(room, 0.0)) * moved_7, -1.0, 1.0)


def _inverse(matrix: np.ndarray) -> np.ndarray:
  """Returns the damped pseudo-inverse of a matrix [M, 7]."""
  return matrix.T @ np.linalg.inv(matrix @ matrix.T + _DAMPING * np.eye(len(matrix)))
