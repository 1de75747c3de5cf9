"""Action chunks as paths, and the residual between two of them.

A path is what a chunk comes to, relative to the moment of the decision where entries integrate: changes per tick are
summed up, places stay as they are. A correction is a displacement of the path, not of single actions: two paths that
are the same in space but shifted in time have no residual (what the learning notes call path-aligned).
"""

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.robots.robot import ActionSpace

_LEAST_COST = np.float32(1e-12)
# Of every float32 product that decides an action: by default a GPU rounds their factors to 10 bits, a TPU to 8, so that
# votes would be close on one machine and far apart on another.
EXACT = jax.lax.Precision.HIGHEST


def to_path(chunk_BTA, space: ActionSpace):
  """Returns the path of a chunk, float[..., T, A]: entries that integrate summed over time, the others as they are."""
  if not any(space.integrates):
    return chunk_BTA
  integrates_A = np.array(space.integrates)
  if isinstance(chunk_BTA, np.ndarray):
    return np.where(integrates_A, np.cumsum(chunk_BTA, axis=-2), chunk_BTA)
  # As a product with a triangle of ones: half the time of a cumulative sum on a CPU.
  ones_TU = jnp.tril(jnp.ones((chunk_BTA.shape[-2],) * 2, chunk_BTA.dtype))
  summed_BTA = jnp.matmul(ones_TU, chunk_BTA, precision=EXACT)
  return jnp.where(integrates_A, summed_BTA, chunk_BTA)


def from_path(path_BTA, space: ActionSpace):
  """Returns the chunk that follows a path as closely as the action limits allow.

  What a limit cuts off in one tick is carried into the next, so the path is reached late rather than missed.
  Args:
    path_BTA: float[..., T, A], relative to the moment of the decision where entries integrate.
  """
  low_A, high_A = jnp.asarray(space.low, jnp.float32), jnp.asarray(space.high, jnp.float32)
  if not any(space.integrates):
    return jnp.clip(path_BTA, low_A, high_A)
  integrates_A = np.array(space.integrates)
  reached = jnp.zeros_like(path_BTA[..., 0, :])
  chunk = []
  for t in range(path_BTA.shape[-2]):
    action = jnp.clip(path_BTA[..., t, :] - reached, low_A, high_A)
    reached = reached + jnp.where(integrates_A, action, 0.0)
    chunk.append(action)
  return jnp.stack(chunk, axis=-2)


def aligned_residual(base_BTA, target_BTA, space: ActionSpace, *, band: int):
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
  base_path, target_path = to_path(np.asarray(base_BTA), space), to_path(np.asarray(target_BTA), space)
  match_BT = _match(_costs(base_path, target_path, space), band)
  matched = np.take_along_axis(target_path, match_BT[..., None], axis=1)
  return (matched - base_path).astype(np.float32)


def disagreement(residual_BTA, space: ActionSpace):
  """Returns the mean alignment cost of residuals over their ticks, float[...] of float[..., T, A] (1: about 1 cm)."""
  return _norm(residual_BTA, space).mean(axis=-1)


def contradiction(before_TA: np.ndarray, after_TA: np.ndarray, ticks: int, space: ActionSpace) -> float:
  """Returns the mean path cost between a plan and what the one before, `ticks` earlier, had for the same ticks."""
  both = min(len(after_TA), len(before_TA) - ticks)
  if ticks < 1 or both < 1:
    return 0.0
  difference_TA = to_path(after_TA[:both], space) - to_path(before_TA[ticks:][:both], space)
  return float(disagreement(np.asarray(difference_TA, np.float32), space))


def scaled(path_BTA, space: ActionSpace):
  """Returns a path in units of cost over the root of its ticks: the Euclidean distance between two such paths, all
  entries taken together, is the root of their mean squared cost. float[..., T, A]
  """
  return path_BTA * _scale(path_BTA, space)


def unscaled(path_BTA, space: ActionSpace):
  """Returns the path of which `scaled` made this one."""
  return path_BTA / _scale(path_BTA, space)


def squared_length(path_BTA, space: ActionSpace):
  """Returns the squared Euclidean length of scaled paths, float[...] of float[..., T, A]."""
  squared_BTA = jnp.square(path_BTA)
  if any(space.integrates):  # rounded as in the shipped policies' recorded chunks
    return squared_BTA.sum(axis=(-2, -1))
  # As a product with ones: a third of the time of a sum on a CPU.
  squared_BF = squared_BTA.reshape(*squared_BTA.shape[:-2], -1)
  return jnp.matmul(squared_BF, jnp.ones(squared_BF.shape[-1]), precision=EXACT)


def _scale(path_BTA, space: ActionSpace) -> np.ndarray:
  """Returns float32[A], never 0, so that entries without a cost come back too; they still count for nothing."""
  cost_A = np.maximum(np.asarray(space.cost, np.float32), _LEAST_COST)
  return cost_A / np.sqrt(np.float32(path_BTA.shape[-2]))


def _costs(base_BTA, target_BTA, space: ActionSpace):
  return _norm(target_BTA[:, None] - base_BTA[:, :, None], space)


def _norm(difference, space: ActionSpace):
  """Returns the cost of a difference of path points, float[...] for float[..., A]."""
  xp = np if isinstance(difference, np.ndarray) else jnp
  alone = [entry for entry in range(space.dim) if not any(entry in group for group in space.together)]
  total = None
  for group in space.together:
    costs = [space.cost[entry] for entry in group]
    apart = difference[..., list(group)]
    same = len(set(costs)) == 1
    cost = xp.linalg.norm(apart, axis=-1) * costs[0] if same else xp.linalg.norm(apart * np.array(costs), axis=-1)
    total = cost if total is None else total + cost
  for entry in alone:
    cost = xp.abs(difference[..., entry]) * space.cost[entry]
    total = cost if total is None else total + cost
  assert total is not None, "an action space has entries"
  return total


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
