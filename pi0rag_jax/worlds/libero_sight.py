"""Where things of a LIBERO scene are, what they touch and what is in the way: what its expert knows."""

import functools
import itertools

import mujoco
import numpy as np

from pi0rag_jax.worlds.libero_scene import Scene

_CORNERS = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
_RING = np.stack([np.cos(np.arange(16) * np.pi / 8), np.sin(np.arange(16) * np.pi / 8)], axis=-1)
# Of the open hand above a grasp: points of both fingers and the palm, along the fingers' axis, across, up, in m.
_HAND_N3 = np.array([*itertools.product((-0.066, -0.055, -0.045, 0.045, 0.055, 0.066), (-0.012, 0.0, 0.012),
                                        (-0.008, 0.01, 0.03)),
                     *itertools.product(np.linspace(-0.105, 0.105, 11), np.linspace(-0.034, 0.034, 5),
                                        (0.04, 0.07, 0.1))])
_NOTHING_M = 0.0015  # between the fingers
_MARGIN_M = 0.007  # around things that the open hand may not touch; drawers have thin walls
_STILL_M_PER_S = 0.05
_CORRIDOR_M = 0.06  # half the width in which the hand passes over things


class Sight:
  """Geometry of a scene in its present state; world frame, m."""

  def __init__(self, scene: Scene):
    self._scene, self.model, self.data = scene, scene.model, scene.data
    self._names = list(scene.domain.obj_body_id)
    self._solid = (self.model.geom_contype != 0) | (self.model.geom_conaffinity != 0)
    gripper = scene.arm.gripper.important_geoms
    self._fingers = [{self.model.geom(name).id for name in gripper[side]} for side in ("left_finger", "right_finger")]
    self.hand_geoms = set(itertools.chain(*self._fingers))

  @property
  def hand(self) -> np.ndarray:
    """Where the point between the fingertips is."""
    return self.data.site_xpos[self._scene.arm.eef_site_id].copy()

  @property
  def hand_axes(self) -> np.ndarray:
    """float[3, 3] with columns: along which the fingers open, across, and where they point."""
    return self.data.site_xmat[self._scene.arm.eef_site_id].reshape(3, 3).copy()

  @property
  def hand_speed(self) -> float:
    """How fast the hand moves, in m/s."""
    velocity_6, site = np.empty(6), self._scene.arm.eef_site_id
    mujoco.mj_objectVelocity(self.model, self.data, mujoco.mjtObj.mjOBJ_SITE, site, velocity_6, 0)
    return float(np.linalg.norm(velocity_6[3:]))

  @property
  def closing(self) -> float:
    """What the gripper is told: from -1, open, to 1, closed; it takes eight ticks from one to the other."""
    return float(self._scene.arm.gripper.current_action[-1])

  @property
  def spreading(self) -> float:
    """How fast the fingers open, in m/s."""
    first, second = self.data.qvel[self._scene.arm._ref_gripper_joint_vel_indexes]
    return float(first - second)

  @property
  def gap(self) -> float:
    """How far apart the fingers are."""
    first, second = self.data.qpos[self._scene.arm._ref_gripper_joint_pos_indexes]
    return float(first - second)

  @functools.cache  # noqa: B019
  def geoms(self, name: str) -> tuple[int, ...]:
    """Returns the solid geoms of a thing, with all its parts."""
    root = self.model.body_rootid[self._scene.domain.obj_body_id[name]]
    return tuple(int(geom) for geom in np.flatnonzero(self._solid) if
                 self.model.body_rootid[self.model.geom_bodyid[geom]] == root)

  def origin(self, name: str) -> np.ndarray:
    """Returns where a thing is for LIBERO's goals: its body's origin."""
    return self.data.xpos[self._scene.domain.obj_body_id[name]].copy()

  def points(self, name: str) -> np.ndarray:
    """Returns float[N, 3], corners of a thing."""
    return self.points_of(self.geoms(name))

  def points_of(self, geoms: tuple[int, ...]) -> np.ndarray:
    """Returns float[N, 3], corners of geoms."""
    return np.concatenate([self._outline(geom) @ self.data.geom_xmat[geom].reshape(3, 3).T + self.data.geom_xpos[geom]
                           for geom in geoms])

  def touch(self, one: set[int] | tuple[int, ...], other: set[int] | tuple[int, ...]) -> bool:
    """Returns whether any geom of the one touches any of the other."""
    pairs = self.data.contact.geom
    return bool(((np.isin(pairs[:, 0], list(one)) & np.isin(pairs[:, 1], list(other)))
                 | (np.isin(pairs[:, 1], list(one)) & np.isin(pairs[:, 0], list(other)))).any())

  def held(self, name: str) -> bool:
    """Returns whether a thing is between the fingers: both touch it, or one does and something keeps them apart."""
    touching = sum(self.touch(finger, self.geoms(name)) for finger in self._fingers)
    return touching == 2 or (touching == 1 and self.closing > 0.9 and self.gap > _NOTHING_M
                             and abs(self.spreading) < 0.01)

  @property
  def closed_on_nothing(self) -> bool:
    """Whether the fingers meet, or open again after they have."""
    return self.spreading > 0.01 or (self.closing > 0.99 and self.gap < _NOTHING_M)

  def speed(self, name: str) -> float:
    """Returns how fast a thing moves, in m/s."""
    return float(np.linalg.norm(self.data.cvel[self._scene.domain.obj_body_id[name], 3:]))

  def height_over(self, start_m: np.ndarray, end_m: np.ndarray, without: str) -> float:
    """Returns the top of what lies under the way from a place to another, without one thing and what moves along."""
    low_G3, high_G3 = self._bounds(without)
    owners_G = self.model.body_rootid[self.model.geom_bodyid[self._others(without)]]
    high_G3[np.linalg.norm(self.data.cvel[owners_G, 3:], axis=-1) > _STILL_M_PER_S] = -np.inf
    way_W2 = start_m[:2] + np.linspace(0.0, 1.0, 12)[:, None] * (end_m - start_m)[:2]
    under = ((way_W2[:, None] > low_G3[:, :2] - _CORRIDOR_M) & (way_W2[:, None] < high_G3[:, :2] + _CORRIDOR_M)).all(-1)
    return float(high_G3[under.any(0), 2].max(initial=-np.inf))

  def blocked(self, place_m: np.ndarray, axis_2: np.ndarray, without: str) -> int:
    """Returns how many points of the open hand are inside of things, at a grasp from above.

    Args:
      axis_2: along which the fingers open, horizontal.
    """
    across_2 = np.array([-axis_2[1], axis_2[0]])
    hand_N3 = place_m + np.c_[_HAND_N3[:, :1] * axis_2 + _HAND_N3[:, 1:2] * across_2, _HAND_N3[:, 2]]
    low_G3, high_G3 = self._bounds(without)
    near_G = ((hand_N3.min(0) < high_G3) & (hand_N3.max(0) > low_G3)).all(-1)
    inside_N = np.zeros(len(hand_N3), bool)
    for geom in np.asarray(self._others(without))[near_G]:
      local_N3 = (hand_N3 - self.data.geom_xpos[geom]) @ self.data.geom_xmat[geom].reshape(3, 3)
      box = self.model.geom_aabb[geom]
      inside_N |= (np.abs(local_N3 - box[:3]) < box[3:] + _MARGIN_M).all(-1)
    return int(inside_N.sum())

  @functools.cache  # noqa: B019
  def _others(self, without: str) -> list[int]:
    """Returns the solid geoms of all things but one."""
    return [geom for name in self._names if name != without for geom in self.geoms(name)]

  def _bounds(self, without: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (low, high) float[G, 3] of all geoms but those of one thing."""
    geoms = self._others(without)
    axes_G33 = self.data.geom_xmat[geoms].reshape(-1, 3, 3)
    middle_G3 = self.data.geom_xpos[geoms] + np.einsum("gij,gj->gi", axes_G33, self.model.geom_aabb[geoms, :3])
    half_G3 = np.einsum("gij,gj->gi", np.abs(axes_G33), self.model.geom_aabb[geoms, 3:])
    return middle_G3 - half_G3, middle_G3 + half_G3

  @functools.cache  # noqa: B019
  def _outline(self, geom: int) -> np.ndarray:
    """Returns float[N, 3], corners of a geom in its frame."""
    kind, size = self.model.geom_type[geom], self.model.geom_size[geom]
    if kind == mujoco.mjtGeom.mjGEOM_MESH:
      mesh = self.model.geom_dataid[geom]
      first = self.model.mesh_vertadr[mesh]
      return self.model.mesh_vert[first:first + self.model.mesh_vertnum[mesh]].astype(float)
    if kind in (mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_CAPSULE):
      return np.concatenate([np.c_[_RING * size[0], np.full(16, end)] for end in (-size[1], size[1])])
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
      return _CORNERS * size[0] * 0.6
    return _CORNERS * size
