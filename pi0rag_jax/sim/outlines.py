"""Which pixels show nothing new, without a ray for each: the ray-caster leaves these out.

Whatever is on the Panda's table lies in a box in its own frame. Where no such box is, and the table's top is hit, the
picture is known. To a camera that hangs still, what stands still looks always the same. All bounds are generous: a
pixel that is left out is certain.
"""

import itertools

import mujoco
import numpy as np

from pi0rag_jax.sim.scene import TABLE_CENTER_M, TABLE_GEOM, TABLE_HALF_SIZE_M

TOP_NORMAL = (0.0, 0.0, 1.0)
_SLACK_M = 1e-5
_SLACK_PX = 1
_NEAR_M = 1e-4  # what is nearer to a camera's plane is clipped there
_FAR_M = 5.0  # rays may end at 10
_SIGNS_83 = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
# Corners that one sign tells apart.
_EDGES_E2 = np.array([(i, j) for i, j in itertools.combinations(range(8), 2)
                      if (_SIGNS_83[i] != _SIGNS_83[j]).sum() == 1])
_TOP_LOW_2, _TOP_HIGH_2 = (np.array(TABLE_CENTER_M[:2]) + side * (np.array(TABLE_HALF_SIZE_M[:2]) - _SLACK_M)
                           for side in (-1.0, 1.0))


class Boxes:
  """Finds the pixels of square pictures that may show some of a model's geoms."""

  def __init__(self, model: mujoco.MjModel, size: int, geoms_G: np.ndarray):
    self._size, self.geoms_G = size, geoms_G
    center_G3, half_G3 = np.split(model.geom_aabb[geoms_G], 2, axis=1)
    self._corners_G83 = center_G3[:, None] + (half_G3 + _SLACK_M)[:, None] * _SIGNS_83

  def mark(self, seen: np.ndarray, data: mujoco.MjData, camera: int, half: float) -> None:
    """Sets their pixels in bool[size, size]; `half` is half of the picture's width at a depth of 1."""
    position_3, axes_33 = data.cam_xpos[camera], data.cam_xmat[camera].reshape(3, 3)
    low_G2, high_G2 = self._rectangles((self._placed(data) - position_3) @ axes_33, half)
    for (left, top), (right, bottom) in zip(low_G2.tolist(), high_G2.tolist()):
      seen[top:bottom, left:right] = True

  def _placed(self, data: mujoco.MjData) -> np.ndarray:
    """Returns the corners of all boxes in the world's frame, float[G, 8, 3]."""
    axes_G33 = data.geom_xmat[self.geoms_G].reshape(-1, 3, 3)
    return self._corners_G83 @ axes_G33.transpose(0, 2, 1) + data.geom_xpos[self.geoms_G][:, None]

  def _rectangles(self, corners_G83: np.ndarray, half: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels (column, row) around boxes in the camera's frame: the first and one past the last, int[G, 2].
    """
    depth_G8 = -corners_G83[..., 2]
    before_G8 = depth_G8 > _NEAR_M
    with np.errstate(divide="ignore", invalid="ignore"):
      flat_G82 = np.where(before_G8[..., None], corners_G83[..., :2] / depth_G8[..., None], np.nan)
    low_G2, high_G2 = _bounds(flat_G82)
    cut_N = np.flatnonzero(before_G8.any(axis=1) & ~before_G8.all(axis=1))
    if len(cut_N):
      low_N2, high_N2 = _bounds(_clipped(corners_G83[cut_N], depth_G8[cut_N]))
      low_G2[cut_N] = np.fmin(low_G2[cut_N], low_N2)
      high_G2[cut_N] = np.fmax(high_G2[cut_N], high_N2)
    # Columns go right as x does, rows down as y falls. Pixel i covers (2 i / size - 1) half and on.
    first_G2 = np.stack([low_G2[:, 0], -high_G2[:, 1]], axis=1)
    last_G2 = np.stack([high_G2[:, 0], -low_G2[:, 1]], axis=1)
    place = lambda flat: np.clip((flat / half + 1) * self._size / 2, -9, self._size + 9)  # noqa: E731
    first_G2, last_G2 = place(first_G2) - _SLACK_PX, place(last_G2) + _SLACK_PX + 1
    behind_G = ~before_G8.any(axis=1)
    first_G2[behind_G] = last_G2[behind_G] = 0
    return np.maximum(first_G2, 0).astype(int), np.maximum(last_G2, 0).astype(int)

class Outlines:
  """Finds the pixels of square pictures that may show more than the table's top.

  Attributes:
    table: the table's geom.
  """

  def __init__(self, model: mujoco.MjModel, size: int):
    self.table, self._size = model.geom(TABLE_GEOM).id, size
    self._others = Boxes(model, size, np.flatnonzero(np.arange(model.ngeom) != self.table))

  def pixels(self, data: mujoco.MjData, camera: int, directions_R3: np.ndarray, half: float) -> np.ndarray:
    """Returns the numbers int[N] of the pixels, row by row, that must be looked at, rising.

    Args:
      directions_R3: unit rays of all pixels in the world's frame.
      half: of the picture's width at a depth of 1.
    """
    seen = self._beyond_table(data.cam_xpos[camera], directions_R3)
    if seen is None:
      return np.arange(len(directions_R3))
    self._others.mark(seen, data, camera, half)
    return np.flatnonzero(seen)

  def _beyond_table(self, position_3: np.ndarray, directions_R3: np.ndarray) -> np.ndarray | None:
    """Returns which pixels miss the table's top, bool[size, size]; None where the camera is not above it."""
    height, last = float(position_3[2]), self._size - 1
    if height < _SLACK_M:
      return None
    corners_43 = directions_R3[[0, last, self._size * last, self._size * self._size - 1]]
    # Between rays that hit a plane within a rectangle lie others that do.
    if _hits_top(position_3, corners_43).all():
      return np.zeros((self._size, self._size), bool)
    return ~_hits_top(position_3, directions_R3).reshape(self._size, self._size)


def _hits_top(position_3: np.ndarray, directions_R3: np.ndarray) -> np.ndarray:
  """Returns which rays certainly hit the table's top, bool[R], from a place above it."""
  down_R = directions_R3[:, 2]
  with np.errstate(divide="ignore", invalid="ignore"):
    along_R = -position_3[2] / down_R
    hit_R2 = position_3[:2] + along_R[:, None] * directions_R3[:, :2]
  inside_R = ((hit_R2 > _TOP_LOW_2) & (hit_R2 < _TOP_HIGH_2)).all(axis=1)
  return inside_R & (down_R < 0) & (along_R < _FAR_M)


def _clipped(corners_N83: np.ndarray, depth_N8: np.ndarray) -> np.ndarray:
  """Returns where the edges of boxes cross the near plane, as seen, float[N, 12, 2]; NaN for those that do not."""
  first_E, second_E = _EDGES_E2.T
  depth_NE, other_NE = depth_N8[:, first_E], depth_N8[:, second_E]
  crosses_NE = (depth_NE > _NEAR_M) != (other_NE > _NEAR_M)
  with np.errstate(divide="ignore", invalid="ignore"):
    share_NE = (_NEAR_M - depth_NE) / (other_NE - depth_NE)
  start_NE2, end_NE2 = corners_N83[:, first_E, :2], corners_N83[:, second_E, :2]
  point_NE2 = start_NE2 + np.where(crosses_NE, share_NE, np.nan)[..., None] * (end_NE2 - start_NE2)
  return point_NE2 / _NEAR_M


def _bounds(flat_GP2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the least and the most of points, float[G, 2] each, of those that are no NaN."""
  return np.fmin.reduce(flat_GP2, axis=1), np.fmax.reduce(flat_GP2, axis=1)
