"""Whether other demonstrations, where things looked alike, did the same: scores of demonstrations without any rollout.

What one demonstrator does where nobody else does it is a detour, a stop or a miss, and a policy that learns it does it
sometimes. Who looked at things alike is told by the nearest steps of other episodes, among prefix embeddings as in the
policy's memory; what they agree on is the median of what they did next. It follows the majority: `outcomes` says what
mends that.
"""

import numpy as np

from pi0rag_jax.curation.scorers.demonstrations import Steps
from pi0rag_jax.curation.scorers.neighbours import nearest, standardized
from pi0rag_jax.errors import Pi0RagError

NEIGHBOURS = 32


def agreement(steps: Steps, *, neighbours: int = NEIGHBOURS) -> np.ndarray:
  """Returns float64[J] in (0, 1]: e to the minus mean distance of what was done from what others did.

  The distance of a step is the root mean square over its chunk, each action entry in units of its deviation.

  Args:
    steps: of J demonstrations; looks and chunks are standardized here.
    neighbours: steps of other episodes that are asked.
  Raises:
    Pi0RagError: there are too few episodes to have neighbours in.
  """
  return weighted_agreement(steps, np.ones(len(steps)), neighbours=neighbours)


def weighted_agreement(steps: Steps, weight_J: np.ndarray, *, neighbours: int = NEIGHBOURS) -> np.ndarray:
  """Returns `agreement` where what others did is a median in which an episode's steps have its weight.

  Args:
    weight_J: float64, above 0.
  """
  if neighbours < 1:
    raise Pi0RagError(f"agreement: neighbours {neighbours}; allowed: whole numbers from 1")
  if len(steps) < 2:
    raise Pi0RagError(f"{len(steps)} demonstrations: whether they agree takes two or more")
  chunks_ND, episode_N = standardized(steps.chunks_ND), steps.episode_N
  distance_N = np.zeros(len(chunks_ND))
  for rows, nearest_BK, there_BK in nearest(standardized(steps.looks_NF), episode_N, neighbours):
    weight_BK = np.where(there_BK, weight_J[episode_N[nearest_BK]], 0.0)
    agreed_BD = weighted_median(chunks_ND[nearest_BK], weight_BK)
    distance_N[rows] = np.sqrt(np.square(chunks_ND[rows] - agreed_BD).mean(axis=-1))
  return np.exp(-steps.mean_of(distance_N))


def weighted_median(values_BKD: np.ndarray, weight_BK: np.ndarray) -> np.ndarray:
  """Returns float[B, D], where half of the weight lies below and half above; the mean of both values at a tie."""
  order_BKD = np.argsort(values_BKD, axis=1)
  sorted_BKD = np.take_along_axis(values_BKD, order_BKD, axis=1)
  below_BKD = np.cumsum(np.take_along_axis(weight_BK[..., None], order_BKD, axis=1), axis=1)
  half_B1D = below_BKD[:, -1:] / 2
  # With rounding: a tie is where the weight comes to the half exactly.
  first, last = ((below_BKD < half_B1D * bound).sum(axis=1, keepdims=True) for bound in (1 - 1e-9, 1 + 1e-9))
  pick = lambda place_B1D: np.take_along_axis(sorted_BKD, place_B1D, axis=1)[:, 0]  # noqa: E731
  return (pick(first) + pick(np.minimum(last, sorted_BKD.shape[1] - 1))) / 2
