"""SCIZOR's second part: steps that are there already, in another demonstration, are worth less."""

import numpy as np

from pi0rag_jax.curation.scorers.demonstrations import Steps
from pi0rag_jax.curation.scorers.neighbours import nearest, standardized


def novelty(steps: Steps) -> np.ndarray:
  """Returns float64[J]: an episode's mean dissimilarity to the most similar step of another one, 0 to 2.

  A step is its look beside what was done, each of length 1 after standardizing, compared by their cosine.
  Source: SCIZOR (arXiv 2505.22626), which removes single steps above a threshold of similarity, within clusters by
  K-means. Demonstrations are judged whole here, so a mean takes the threshold's place, and no clusters are wanted:
  the search is exact.
  """
  joint_NF = np.concatenate([unit(standardized(steps.looks_NF)), unit(standardized(steps.chunks_ND))], axis=1)
  joint_NF = unit(joint_NF)
  novelty_N = np.zeros(len(joint_NF))
  for rows, nearest_B1, there_B1 in nearest(joint_NF, steps.episode_N, 1):
    cosine_B = np.einsum("bf,bf->b", joint_NF[rows], joint_NF[nearest_B1[:, 0]])
    novelty_N[rows] = np.where(there_B1[:, 0], 1 - cosine_B, 1.0)
  return steps.mean_of(novelty_N)


def unit(values_NF: np.ndarray) -> np.ndarray:
  """Returns float32[N, F] of length 1; zeros stay."""
  length_N1 = np.linalg.norm(values_NF, axis=1, keepdims=True)
  return np.ascontiguousarray(values_NF / np.maximum(length_N1, 1e-9), np.float32)
