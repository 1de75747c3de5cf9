"""Whether a demonstration is of what its prompt asks for: what others were asked for who did the same."""

import numpy as np

from pi0rag_jax.curation.scorers.demonstrations import Steps
from pi0rag_jax.curation.scorers.neighbours import nearest, standardized
from pi0rag_jax.errors import Pi0RagError

NEIGHBOURS = 32


def prompt_agreement(steps: Steps, *, neighbours: int = NEIGHBOURS) -> np.ndarray:
  """Returns float64[J] in [0, 1], how often those who did the same where things looked alike had the same prompt.

  Neighbours are steps of other episodes by look and chunk, each of which counts as one. A prompt that is rare among all
  steps is held to its share: half is what chance gives, and what all have where there is one prompt, or none. It
  follows the majority, as `agreement` does.

  Raises:
    Pi0RagError: there are too few episodes to have neighbours in.
  """
  if neighbours < 1:
    raise Pi0RagError(f"prompt: neighbours {neighbours}; allowed: whole numbers from 1")
  if len(steps) < 2:
    raise Pi0RagError(f"{len(steps)} demonstrations: whether they are of what they are said to be takes two or more")
  if not steps.prompts:
    return np.full(len(steps), 0.5)
  kinds, asked_N = np.unique(np.concatenate([np.asarray(each, str) for each in steps.prompts]), return_inverse=True)
  usual_N = (np.bincount(asked_N, minlength=len(kinds)) / len(asked_N))[asked_N]
  parts = [standardized(part_NX) / np.sqrt(part_NX.shape[1]) for part_NX in (steps.looks_NF, steps.chunks_ND)]
  share_N = np.zeros(len(asked_N))
  keys_NX = np.ascontiguousarray(np.concatenate(parts, axis=1), np.float32)
  for rows, nearest_BK, there_BK in nearest(keys_NX, steps.episode_N, neighbours):
    same_BK = there_BK & (asked_N[nearest_BK] == asked_N[rows, None])
    share_N[rows] = same_BK.sum(axis=1) / np.maximum(there_BK.sum(axis=1), 1)
  return steps.mean_of(share_N / (share_N + usual_N))
