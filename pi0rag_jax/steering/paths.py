"""Action chunks as paths of the commanded tool, and the residual between two of them.

Chunks hold deltas per control tick; integrated, they are paths relative to the pose at the decision. Grippers
are absolute and stay as they are. A correction is a displacement of the path, not of single deltas: two paths
that are the same in space but shifted in time have no residual (what the learning notes call path-aligned).
"""

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.policy.spec import ActionLayout

# What one unit of alignment cost is worth: 1 cm, 0.33 rad, half of a gripper's stroke (learning notes:
# position weight 1, yaw 0.3, gripper mismatch 2, with positions in cm and yaw in 0.1 rad).
POSITION_COST_PER_M = 100.0
ROTATION_COST_PER_RAD = 3.0
GRIPPER_COST = 2.0


def to_path(chunk_BTA, layout: ActionLayout):
  """Returns the path of a chunk: deltas summed over time, absolute entries kept. float[..., T, A]; m, rad."""
  deltas_A = np.zeros(layout.dim, bool)
  deltas_A[[*layout.position, *layout.rotation]] = True
  if isinstance(chunk_BTA, np.ndarray):
    return np.where(deltas_A, np.cumsum(chunk_BTA, axis=-2), chunk_BTA)
  # As a product with a triangle of ones: half the time of a cumulative sum on a CPU.
  ones_TU = jnp.tril(jnp.ones((chunk_BTA.shape[-2],) * 2, chunk_BTA.dtype))
  summed_BTA = jnp.matmul(ones_TU, chunk_BTA, precision=jax.lax.Precision.HIGHEST)
  return jnp.where(deltas_A, summed_BTA, chunk_BTA)


def from_path(path_BTA, layout: ActionLayout):
  """Returns the chunk that follows a path as closely as the action limits allow.

  What a limit cuts off in one tick is carried into the next, so the path is reached late rather than missed.
  Args:
    path_BTA: float[..., T, A], relative to the pose at the decision.
  """
  deltas_A = np.zeros(layout.dim, bool)
  deltas_A[[*layout.position, *layout.rotation]] = True
  low_A, high_A = jnp.asarray(layout.low, jnp.float32), jnp.asarray(layout.high, jnp.float32)
  reached = jnp.zeros_like(path_BTA[..., 0, :])
  chunk = []
  for t in range(path_BTA.shape[-2]):
    action = jnp.clip(path_BTA[..., t, :] - reached, low_A, high_A)
    reached = reached + jnp.where(deltas_A, action, 0.0)
    chunk.append(action)
  return jnp.stack(chunk, axis=-2)


def aligned_residual(base_BTA, target_BTA, layout: ActionLayout, *, band: int):
  """Returns target path minus base path, each base point against the target point that it corresponds to.

  Open-ended dynamic time warping: the paths start together, every base point is matched in order, the target
  path may go on beyond the last match.
  Args:
    base_BTA, target_BTA: float[B, T, A], chunks.
    band: most ticks by which matched points may differ in time; 0 compares tick by tick. It also bounds how
      long a base policy that stands still may count as agreeing with a target that moves.
  Returns:
    float32[B, T, A], a displacement of the base path.
  """
  base_path, target_path = to_path(np.asarray(base_BTA), layout), to_path(np.asarray(target_BTA), layout)
  match_BT = _match(_costs(base_path, target_path, layout), band)
  matched = np.take_along_axis(target_path, match_BT[..., None], axis=1)
  return (matched - base_path).astype(np.float32)


def disagreement(residual_BTA, layout: ActionLayout):
  """Returns the mean alignment cost of residuals over their ticks, float[...] of float[..., T, A] (1: about 1 cm)."""
  return _norm(residual_BTA, layout).mean(axis=-1)


def scaled(path_BTA, layout: ActionLayout):
  """Returns a path in units of cost over the root of its ticks: the Euclidean distance between two such paths, all
  entries taken together, is the root of their mean squared cost. float[..., T, A]
  """
  scale_A = np.zeros(layout.dim, np.float32)
  scale_A[list(layout.position)] = POSITION_COST_PER_M
  scale_A[list(layout.rotation)] = ROTATION_COST_PER_RAD
  scale_A[list(layout.gripper)] = GRIPPER_COST
  return path_BTA * (scale_A / np.sqrt(np.float32(path_BTA.shape[-2])))


def _costs(base_BTA, target_BTA, layout: ActionLayout):
  return _norm(target_BTA[:, None] - base_BTA[:, :, None], layout)


def _norm(difference, layout: ActionLayout):
  """Returns the cost of a difference of poses, float[...] for float[..., A]."""
  xp = np if isinstance(difference, np.ndarray) else jnp
  position = xp.linalg.norm(difference[..., np.array(layout.position, int)], axis=-1) * POSITION_COST_PER_M
  rotation = xp.abs(difference[..., np.array(layout.rotation, int)]).sum(-1) * ROTATION_COST_PER_RAD
  gripper = xp.abs(difference[..., np.array(layout.gripper, int)]).sum(-1) * GRIPPER_COST
  return position + rotation + gripper


def _match(cost_BTU, band: int):
  """Returns the target index matched to each base index, int[B, T], by dynamic programming over the costs."""
  batch, ticks, _ = cost_BTU.shape
  t, u = np.ogrid[:ticks, :ticks]
  cost_BTU = np.where(np.abs(t - u) <= band, cost_BTU, np.inf)
  total = np.full((batch, ticks + 1, ticks + 1), np.inf)
  total[:, 0, 0] = 0.0
  for i in range(ticks):
    for j in range(max(0, i - band), min(ticks, i + band + 1)):
      best = np.minimum(np.minimum(total[:, i, j], total[:, i, j + 1]), total[:, i + 1, j])
      total[:, i + 1, j + 1] = cost_BTU[:, i, j] + best
  return _backtrack(total, cost_BTU)


def _backtrack(total, cost_BTU):
  """Returns, for each base index, the cheapest target index on the optimal warping path."""
  batch, ticks, _ = cost_BTU.shape
  rows = np.arange(batch)
  i, j = np.full(batch, ticks), total[:, ticks].argmin(axis=-1)
  match_BT = np.zeros((batch, ticks), int)
  cheapest_BT = np.full((batch, ticks), np.inf)
  for _ in range(2 * ticks):
    running = i > 0
    cost = np.where(running, cost_BTU[rows, i - 1, j - 1], np.inf)
    better = cost < cheapest_BT[rows, i - 1]
    match_BT[rows[better], i[better] - 1] = j[better] - 1
    cheapest_BT[rows[better], i[better] - 1] = cost[better]
    # The diagonal comes first, so that equal paths are matched tick by tick.
    options = np.stack([total[rows, i - 1, j - 1], total[rows, i - 1, j], total[rows, i, j - 1]])
    move = options.argmin(axis=0)
    i = np.where(running, i - (move != 2), 0)
    j = np.where(running, j - (move != 1), j)
  return match_BT
