"""What the retrieved records ask for: from the policy's own chunk to the one they would rather see. Pure.

Each neighbour votes with a weight, and so does the policy itself. All chunks are in the robot's units.
"""

import math

import jax.numpy as jnp

from pi0rag_jax.memory.record import FAILURE, KINDS
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering import networks, paths

NOISE_LIMIT = 3.0  # FlowDAgger's `action_magnitude`
_TINY = 1e-9  # keeps a sum without any weight from dividing by zero


def residual(base_BTA, neighbours, weight_BK, config, space: ActionSpace):
  """Returns base path + alpha * the residual that the neighbours agree on, as a chunk within the action limits.

  Source: the project's learning notes, where it is the mean of all: r = sum(w trust r) / (sum(w) + lambda).
  """
  weight_BK = jnp.where(_failed(neighbours), 0.0, weight_BK)
  if config.band:
    residual_BKTA = neighbours["residual_BKTA"]
  else:
    residual_BKTA = paths.to_path(neighbours["corrected_BKTA"] - neighbours["base_BKTA"], space)
  agreed_BTA = _agreed(residual_BKTA, residual_BKTA, neighbours, weight_BK, config, space)
  return _displaced(base_BTA, agreed_BTA, config, space)


def blend(base_BTA, neighbours, weight_BK, config, space: ActionSpace):
  """Returns base + alpha * clamp(the neighbours' chunk that they agree on - base), entry by entry."""
  weight_BK = jnp.where(_failed(neighbours), 0.0, weight_BK)
  low_A, high_A = jnp.asarray(space.low, jnp.float32), jnp.asarray(space.high, jnp.float32)
  difference_BKTA = neighbours["corrected_BKTA"] - base_BTA[:, None]
  path_BKTA = paths.to_path(difference_BKTA, space)
  difference_BTA = jnp.clip(_agreed(difference_BKTA, path_BKTA, neighbours, weight_BK, config, space),
                            low_A - high_A, high_A - low_A)
  return jnp.clip(base_BTA + config.alpha * difference_BTA, low_A, high_A)


def repulsion(base_BTA, neighbours, weight_BK, config, space: ActionSpace):
  """Returns base path + alpha * what most leads from failed paths to it, within the action limits.

  A failed path that is far from the base path pushes less, by `nearness`. A failed chunk that the policy now repeats
  exactly leads nowhere: there is no direction away from it.
  """
  away_BKTA = paths.to_path(base_BTA, space)[:, None] - paths.to_path(neighbours["corrected_BKTA"], space)
  weight_BK = jnp.where(_failed(neighbours), weight_BK * nearness(away_BKTA, space), 0.0)
  away_BTA = _agreed(away_BKTA, away_BKTA, neighbours, weight_BK, config, space)
  return _displaced(base_BTA, away_BTA, config, space)


def contrast(base_BTA, neighbours, weight_BK, config, space: ActionSpace):
  """Returns base path + alpha * what leads to the chunks that worked and away from those that failed.

  Source: the idea of TraceFlow (arXiv 2609.20646): one bit per episode, no expert.
  """
  path_BTA, path_BKTA = (paths.to_path(chunk, space) for chunk in (base_BTA, neighbours["corrected_BKTA"]))
  to_BKTA = path_BKTA - path_BTA[:, None]
  failed_BK = _failed(neighbours)
  # As in `repulsion`: away, and the less the farther.
  away_BK = jnp.where(failed_BK, -nearness(to_BKTA, space), 1.0)
  vote_BKTA = to_BKTA * away_BK[..., None, None]
  agreed_BTA = _agreed(vote_BKTA, vote_BKTA, neighbours, weight_BK, config, space)
  return _displaced(base_BTA, agreed_BTA, config, space)


def residual_network(base_BTA, neighbours, weight_BK, config, space: ActionSpace):
  """Returns base path + alpha * the residual that a network foresees of the key and the policy's own chunk.

  Source: Residual-DAgger as FlowDAgger (arXiv 2607.08877) compares with it.
  """
  inputs_BI = residual_inputs(neighbours["key_BE"], base_BTA, space)
  residual_BTA = networks.apply(neighbours["network"], inputs_BI).reshape(base_BTA.shape)
  return _displaced(base_BTA, paths.unscaled(residual_BTA, space), config, space)


def residual_inputs(key_BE, base_BTA, space: ActionSpace):
  """Returns what a residual network takes, float[B, I]: the key, and the policy's own path in units of cost."""
  path_BTA = paths.scaled(paths.to_path(base_BTA, space), space)
  return jnp.concatenate([key_BE, path_BTA.reshape(len(path_BTA), -1)], axis=1)


def noise(base_BTA, neighbours, weight_BK, config, space: ActionSpace):
  """Returns the noise that the neighbours agree on, float[B, T, X], from where the policy's own flow starts.

  Their corrections inverted through the flow (`noise_BKTX`) take the place of the residuals of `residual`; neighbours
  agree where their residuals do, and the policy itself votes for its own start.
  """
  weight_BK = jnp.where(_failed(neighbours), 0.0, weight_BK)
  residual_BKTA = paths.to_path(neighbours["corrected_BKTA"] - neighbours["base_BKTA"], space)
  return config.alpha * _agreed(neighbours["noise_BKTX"], residual_BKTA, neighbours, weight_BK, config, space)


def noise_network(base_BTA, neighbours, weight_BK, config, space: ActionSpace):
  """Returns the noise that a network foresees of the key, float[B, T, X], from where the policy's own flow starts.

  Source: FlowDAgger (arXiv 2607.08877).
  """
  outputs_BO = bounded_noise(networks.apply(neighbours["network"], neighbours["key_BE"]))
  return outputs_BO.reshape(*base_BTA.shape[:2], -1)


def bounded_noise(outputs):
  """Returns a network's outputs within the noise that FlowDAgger allows its own."""
  return NOISE_LIMIT * jnp.tanh(outputs / NOISE_LIMIT)


METHODS = {"residual": residual, "blend": blend, "repulsion": repulsion, "contrast": contrast,
           "residual_network": residual_network, "noise": noise, "noise_network": noise_network}


def values(candidates_NBTA, neighbours, weight_BK, space: ActionSpace):
  """Returns how good each candidate looks, float[N, B]: near to neighbours that worked, far from those that failed."""
  sign_BK = jnp.where(_failed(neighbours), -1.0, 1.0) * weight_BK * neighbours["trust_BK"]
  apart_NBKTA = (paths.to_path(candidates_NBTA, space)[:, :, None]
                 - paths.to_path(neighbours["corrected_BKTA"], space)[None])
  return jnp.einsum("BK,NBK->NB", sign_BK, nearness(apart_NBKTA, space), precision=paths.EXACT)


def nearness(difference, space: ActionSpace):
  """Returns 1 for equal paths, 1/2 for paths about 1 cm apart, float[...] of float[..., T, A]."""
  return 1.0 / (1.0 + paths.disagreement(difference, space))


def _failed(neighbours):
  return neighbours["kind_BK"] == KINDS.index(FAILURE)


def _agreed(vote_BKTA, path_BKTA, neighbours, weight_BK, config, space: ActionSpace):
  """Returns the mean of the votes around the one that most of the weight is near to, float[B, T, A].

  The policy itself votes for no change: with lambda, and with what records that are not trusted have lost. Votes are
  near to each other by a kernel of `mode_width` on their paths: where some records ask for one thing and others for
  another, half of each would be neither.
  """
  same = vote_BKTA is path_BKTA
  trusted_BK = weight_BK * neighbours["trust_BK"]
  own_B = config.regularization + (weight_BK - trusted_BK).sum(axis=-1)
  weight_BN = jnp.concatenate([trusted_BK, own_B[:, None]], axis=1)
  if any(space.integrates):
    # A last row for the policy's own vote. All that it adds is zeros, but sums of other lengths round otherwise, and
    # the shipped policies' chunks are recorded.
    vote_BKTA, path_BKTA = (jnp.concatenate([array, jnp.zeros_like(array[:, :1])], axis=1)
                            for array in (vote_BKTA, path_BKTA))
  if math.isfinite(config.mode_width):
    path_BKTA = paths.scaled(path_BKTA, space)
    near_BNN = jnp.exp(-_squared_distances(path_BKTA, weight_BN.shape[1], space) / (2 * config.mode_width**2))
    mode_B = jnp.einsum("BNM,BM->BN", near_BNN, weight_BN, precision=paths.EXACT).argmax(axis=-1)
    weight_BN *= jnp.take_along_axis(near_BNN, mode_B[:, None, None], axis=1)[:, 0]
    if same and not any(space.integrates):  # with both sums over one array, XLA makes no second one
      return paths.unscaled(_mean(path_BKTA, weight_BN), space)
  return _mean(vote_BKTA, weight_BN)


def _mean(vote_BKTA, weight_BN):
  """Returns the weighted mean of votes, float[B, T, A]; a vote that is missing at the end asks for nothing."""
  total_B = jnp.maximum(weight_BN.sum(axis=-1), _TINY)
  sum_BTA = jnp.einsum("BK,BKTA->BTA", weight_BN[:, : vote_BKTA.shape[1]], vote_BKTA, precision=paths.EXACT)
  return sum_BTA / total_B[:, None, None]


def _squared_distances(path_BKTA, count: int, space: ActionSpace):
  """Returns the squared Euclidean distance of each pair of scaled paths, float[B, count, count], by one matrix product.

  Paths that are missing lie at the origin.
  """
  points_BKF = path_BKTA.reshape(*path_BKTA.shape[:2], -1)
  missing = (0, count - points_BKF.shape[1])
  product_BKM = jnp.einsum("BKF,BMF->BKM", points_BKF, points_BKF, precision=paths.EXACT)
  product_BNN = jnp.pad(product_BKM, ((0, 0), missing, missing))
  if any(space.integrates):  # rounded otherwise than the diagonal, as in the shipped policies' recorded chunks
    length_BN = jnp.pad(paths.squared_length(path_BKTA, space), ((0, 0), missing))
  else:
    length_BN = jnp.diagonal(product_BNN, axis1=1, axis2=2)
  return jnp.maximum(length_BN[:, :, None] + length_BN[:, None] - 2 * product_BNN, 0.0)


def _displaced(base_BTA, displacement_BTA, config, space: ActionSpace):
  """Returns the chunk along the base path plus alpha times a displacement within the robot's reach."""
  if space.reach:
    reach_A = jnp.asarray(space.reach, jnp.float32)
    displacement_BTA = jnp.clip(displacement_BTA, -reach_A, reach_A)
  return paths.from_path(paths.to_path(base_BTA, space) + config.alpha * displacement_BTA, space)
