"""DemInf: how much a demonstration's steps add to what states tell of actions.

Source: Robot Data Curation with Mutual Information Estimators (arXiv 2502.08623), whose estimator is that of Kraskov,
Stoegbauer and Grassberger 2004 (Phys. Rev. E 69:066138, the first one), averaged over several numbers of neighbours.
"""

import numpy as np
from scipy.spatial import distance
from scipy.special import digamma

from pi0rag_jax.curation.scorers.demonstrations import Steps
from pi0rag_jax.curation.scorers.neighbours import standardized

NEIGHBOURS = (5, 6, 7)  # the paper's
BATCH = 1024  # steps among which neighbours are searched for at once, drawn at random; the paper's
DRAWS = 4  # how often every step is compared, each time with others; the paper's
WIDTH = 16  # of what states and actions are reduced to at most
CLIPPED = (1, 99)  # percentiles beyond which a step's contribution is cut off, so that none decides an episode


def mutual_information(steps: Steps, *, seed: int = 0, draws: int = DRAWS, width: int = WIDTH) -> np.ndarray:
  """Returns float64[J], the mean contribution of an episode's steps to the mutual information, in nats.

  The paper embeds states and chunks by variational autoencoders. Here looks are a policy's embeddings, or states, and
  both are reduced to their principal components of deviation 1, `width` at most: deterministic, and nothing is trained.
  """
  looks_NW, chunks_NW = (components(values, width) for values in (steps.looks_NF, steps.chunks_ND))
  rng, total_N = np.random.default_rng(seed), np.zeros(len(looks_NW))
  for _ in range(draws):
    order = rng.permutation(len(total_N))
    parts = np.array_split(order, -(-len(order) // BATCH))
    for rows in parts:
      total_N[rows] += contributions(looks_NW[rows], chunks_NW[rows])
  low, high = np.percentile(total_N / draws, CLIPPED)
  return steps.mean_of(np.clip(total_N / draws, low, high))


def contributions(x_BX: np.ndarray, y_BY: np.ndarray, neighbours: tuple[int, ...] = NEIGHBOURS) -> np.ndarray:
  """Returns float64[B], whose mean is the mutual information of x and y, in nats; each is one step's share of it.

  The distance is the larger one of x and y; the number of steps that are nearer than the k-th neighbour in either says
  how much knowing one tells of the other.
  """
  x_BB, y_BB = (distance.cdist(each_BW, each_BW) for each_BW in (x_BX, y_BY))
  for apart_BB in (x_BB, y_BB):
    np.fill_diagonal(apart_BB, np.inf)
  both_BK = np.sort(np.maximum(x_BB, y_BB), axis=1)
  found_B = np.zeros(len(x_BX))
  usable = [k for k in neighbours if k < len(x_BX)]
  for k in usable:
    reach_B1 = both_BK[:, k - 1 : k]
    counts = ((apart_BB < reach_B1).sum(axis=1) for apart_BB in (x_BB, y_BB))
    found_B += digamma(k) + digamma(len(x_BX)) - sum(digamma(count_B + 1) for count_B in counts)
  return found_B / max(len(usable), 1)


def components(values_NF: np.ndarray, width: int) -> np.ndarray:
  """Returns float64[N, W] of deviation 1: the first principal components of standardized columns, W at most `width`."""
  centred_NF = standardized(values_NF).astype(np.float64)
  _, size_W, directions_WF = np.linalg.svd(centred_NF.T @ centred_NF / len(centred_NF), hermitian=True)
  kept = min(width, int((size_W > 1e-6 * size_W[0]).sum())) if size_W[0] > 0 else 1
  found_NW = centred_NF @ directions_WF[:kept].T
  return found_NW / np.maximum(found_NW.std(axis=0), 1e-9)
