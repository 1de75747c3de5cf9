"""Rotations in three dimensions, as matrices and as rotation vectors."""

import mujoco
import numpy as np


def rotation(vector_3: np.ndarray) -> np.ndarray:
  """Returns float[3, 3] of a rotation vector, rad."""
  angle, quaternion, matrix = float(np.linalg.norm(vector_3)), np.empty(4), np.empty(9)
  mujoco.mju_axisAngle2Quat(quaternion, vector_3 / max(angle, 1e-12), angle)
  mujoco.mju_quat2Mat(matrix, quaternion)
  return matrix.reshape(3, 3)


def rotation_vector(matrix_33: np.ndarray) -> np.ndarray:
  """Returns the inverse of `rotation`."""
  quaternion, vector_3 = np.empty(4), np.empty(3)
  mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(matrix_33).reshape(9))
  mujoco.mju_quat2Vel(vector_3, quaternion, 1.0)
  return vector_3


def angle_between(first_33: np.ndarray, second_33: np.ndarray) -> float:
  """Returns the angle between two orientations, rad."""
  return float(np.linalg.norm(rotation_vector(first_33 @ second_33.T)))
