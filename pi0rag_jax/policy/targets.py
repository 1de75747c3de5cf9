"""What the retrieved records ask for: from the policy's own chunk to the one they would rather see. Pure.

Each neighbour votes with a weight; a record that is not trusted votes for the base policy by what it lost, since its
weight stays in the sum that divides. All chunks are in the robot's units.
"""

import jax.numpy as jnp

from pi0rag_jax.memory.record import FAILURE, KINDS
from pi0rag_jax.policy import paths
from pi0rag_jax.policy.spec import ActionLayout

_TINY = 1e-9  # keeps a sum without any weight from dividing by zero


def residual(base_BTA, neighbours, weight_BK, config, layout: ActionLayout):
  """Returns base path + alpha * kernel-weighted residual, as a chunk within the action limits.

  r = sum(w trust r) / (sum(w) + lambda). Source: the project's learning notes.
  """
  weight_BK = jnp.where(_failed(neighbours), 0.0, weight_BK)
  return _displaced(base_BTA, _mean(neighbours["residual_BKTA"], neighbours, weight_BK, config), config, layout)


def blend(base_BTA, neighbours, weight_BK, config, layout: ActionLayout):
  """Returns base + alpha * clamp(kernel-weighted mean of the neighbours' chunks - base), entry by entry."""
  weight_BK = jnp.where(_failed(neighbours), 0.0, weight_BK)
  low_A, high_A = jnp.asarray(layout.low, jnp.float32), jnp.asarray(layout.high, jnp.float32)
  difference_BTA = _mean(neighbours["corrected_BKTA"] - base_BTA[:, None], neighbours, weight_BK, config)
  difference_BTA = jnp.clip(difference_BTA, low_A - high_A, high_A - low_A)
  return jnp.clip(base_BTA + config.alpha * difference_BTA, low_A, high_A)


def repulsion(base_BTA, neighbours, weight_BK, config, layout: ActionLayout):
  """Returns base path + alpha * weighted mean of what leads from failed paths to it, within the action limits.

  A failed path that is far from the base path pushes less, by `nearness`. A failed chunk that the policy now repeats
  exactly leads nowhere: there is no direction away from it.
  """
  away_BKTA = paths.to_path(base_BTA, layout)[:, None] - paths.to_path(neighbours["corrected_BKTA"], layout)
  weight_BK = jnp.where(_failed(neighbours), weight_BK * nearness(away_BKTA, layout), 0.0)
  return _displaced(base_BTA, _mean(away_BKTA, neighbours, weight_BK, config), config, layout)


METHODS = {"residual": residual, "blend": blend, "repulsion": repulsion}


def values(candidates_NBTA, neighbours, weight_BK, layout: ActionLayout):
  """Returns how good each candidate looks, float[N, B]: near to neighbours that worked, far from those that failed."""
  sign_BK = jnp.where(_failed(neighbours), -1.0, 1.0) * weight_BK * neighbours["trust_BK"]
  apart_NBKTA = (paths.to_path(candidates_NBTA, layout)[:, :, None]
                 - paths.to_path(neighbours["corrected_BKTA"], layout)[None])
  return jnp.einsum("BK,NBK->NB", sign_BK, nearness(apart_NBKTA, layout))


def nearness(difference, layout: ActionLayout):
  """Returns 1 for equal paths, 1/2 for paths about 1 cm apart, float[...] of float[..., T, A]."""
  return 1.0 / (1.0 + paths.disagreement(difference, layout))


def _failed(neighbours):
  return neighbours["kind_BK"] == KINDS.index(FAILURE)


def _mean(vote_BKTA, neighbours, weight_BK, config):
  """Returns sum(w trust vote) / (sum(w) + lambda), float[B, T, A]."""
  total_B = jnp.maximum(weight_BK.sum(axis=-1) + config.regularization, _TINY)
  votes_BTA = jnp.einsum("BK,BKTA->BTA", weight_BK * neighbours["trust_BK"], vote_BKTA)
  return votes_BTA / total_B[:, None, None]


def _displaced(base_BTA, displacement_BTA, config, layout: ActionLayout):
  """Returns the chunk along the base path plus alpha times a displacement, of which `clip_m` bounds the positions."""
  bound = [float("inf")] * layout.dim
  for axis in layout.position:
    bound[axis] = config.clip_m
  bound_A = jnp.asarray(bound, jnp.float32)
  displacement_BTA = config.alpha * jnp.clip(displacement_BTA, -bound_A, bound_A)
  return paths.from_path(paths.to_path(base_BTA, layout) + displacement_BTA, layout)
