"""SCIZOR's first part: steps after which the task is no nearer to its end than the time that passed would tell.

Source: SCIZOR (arXiv 2505.22626). A classifier reads two looks of one episode and says how long lies between them, in
bins; what it says less than the time that did pass is what was lost there. The paper trains one network on the whole
data set and weighs a loss over the steps before it; where it is silent, or its choice is for videos: an episode is
judged by a classifier that was trained on the others (two folds), looks are what the caller embeds, and the network is
a small MLP.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from pi0rag_jax.curation.scorers.demonstrations import Steps
from pi0rag_jax.curation.scorers.neighbours import standardized
from pi0rag_jax.models.heads.mlp import MlpTrunk

BINS = 5  # the paper's
FARTHEST_S = 4.0  # seconds between two looks, at most; the paper's windows are of a few seconds
FOLDS = 2
HIDDEN = (64, 64)
UPDATES, BATCH, LEARNING_RATE = 600, 256, 2e-3
PAIRS_PER_STEP = 4  # that judge a step, of different distances


class ElapsedTime(nn.Module):
  """Says which of the bins the time between two looks is in."""

  @nn.compact
  def __call__(self, before_BF, after_BF):
    """Returns logits float32[B, BINS]."""
    pair_BF = jnp.concatenate([before_BF, after_BF, after_BF - before_BF], axis=-1)
    return nn.Dense(BINS)(MlpTrunk(HIDDEN, 0.0)(pair_BF))


def progress(steps: Steps, *, seed: int = 0) -> np.ndarray:
  """Returns float64[J], minus the mean time in s that was lost in an episode: 0 where all went on as elsewhere."""
  rng = np.random.default_rng(seed)
  looks_NF = standardized(steps.looks_NF)
  farthest = max(int(FARTHEST_S / steps.step_s), BINS)
  fold_J = rng.permutation(len(steps)) % FOLDS
  lost_N = np.zeros(len(looks_NF))
  for fold in range(min(FOLDS, len(steps))):
    train_P, judged_P = (_pairs(steps, fold_J != fold, farthest, rng), _pairs(steps, fold_J == fold, farthest, rng))
    if not len(train_P) or not len(judged_P):
      continue
    params = _fit(jnp.asarray(looks_NF), train_P, farthest, seed)
    elapsed_P = judged_P[:, 1] - judged_P[:, 0]
    said_P = np.asarray(_expected(params, looks_NF[judged_P[:, 0]], looks_NF[judged_P[:, 1]])) * farthest / BINS
    count_N = np.bincount(judged_P[:, 0], minlength=len(lost_N))
    lost_N += np.bincount(judged_P[:, 0], elapsed_P - said_P, len(lost_N)) / np.maximum(count_N, 1)
  return -steps.mean_of(lost_N) * steps.step_s


def _pairs(steps: Steps, chosen_J: np.ndarray, farthest: int, rng: np.random.Generator) -> np.ndarray:
  """Returns int64[P, 2], rows of steps of one episode, the second at most `farthest` later."""
  first_J = np.cumsum(steps.lengths_J) - steps.lengths_J
  found = []
  for episode in np.flatnonzero(chosen_J):
    length = int(steps.lengths_J[episode])
    before_P = np.repeat(np.arange(length - 1), PAIRS_PER_STEP)
    after_P = before_P + rng.integers(1, np.minimum(farthest, length - 1 - before_P) + 1)
    found.append(first_J[episode] + np.stack([before_P, after_P], axis=1))
  return np.concatenate(found) if found else np.zeros((0, 2), np.int64)


def _fit(looks_NF, pairs_P2: np.ndarray, farthest: int, seed: int):
  """Returns the parameters of a network that was trained on pairs."""
  bin_P = np.minimum((pairs_P2[:, 1] - pairs_P2[:, 0] - 1) * BINS // farthest, BINS - 1)
  chosen_UB = np.random.default_rng(seed).integers(0, len(pairs_P2), (UPDATES, BATCH))
  return _updates(looks_NF, jnp.asarray(pairs_P2[chosen_UB]), jnp.asarray(bin_P[chosen_UB]), seed)


@jax.jit
def _updates(looks_NF, pairs_UB2, bin_UB, seed):
  network, optimizer = ElapsedTime(), optax.adam(LEARNING_RATE)
  params = network.init(jax.random.key(seed), looks_NF[:1], looks_NF[:1])

  def update(state, inputs):
    params, optimizer_state = state
    pairs_B2, bin_B = inputs
    before_BF, after_BF = looks_NF[pairs_B2[:, 0]], looks_NF[pairs_B2[:, 1]]

    def loss(params):
      logits: Any = network.apply(params, before_BF, after_BF)
      return optax.softmax_cross_entropy_with_integer_labels(logits, bin_B).mean()

    changes, optimizer_state = optimizer.update(jax.grad(loss)(params), optimizer_state)
    return (optax.apply_updates(params, changes), optimizer_state), None

  (params, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), (pairs_UB2, bin_UB))
  return params


@jax.jit
def _expected(params, before_PF, after_PF):
  """Returns float32[P], the expected time in bins: the middle of each, by its probability."""
  logits_PB: Any = ElapsedTime().apply(params, before_PF, after_PF)
  return jax.nn.softmax(logits_PB) @ (jnp.arange(BINS) + 0.5)
