"""Frames that an epoch shows more often: those in which the simulated Panda has to find its object."""

from collections.abc import Sequence

import numpy as np

from pi0rag_jax.data.columns import Columns
from pi0rag_jax.data.dataset import Dataset
from pi0rag_jax.data.samples import action_chunks

GRASPED = "privileged/grasped"
# A frame is an approach when its label moves the empty gripper sideways, or turns it, by so much on average per tick.
APPROACH_M, APPROACH_RAD = 0.005, 0.015
APPROACH_STEPS = 4


def frames(dataset: Dataset, columns: Columns, episodes: Sequence[int], repeats: int) -> np.ndarray:
  """Returns int64[R], the approaches among the frames of episodes, `repeats` times each, by their number there.

  In an approach the policy has to find the object in the pictures; everywhere else the tool's own pose says nearly
  all. Only one frame in six is one, and a policy trained on plain averages learns to look last.
  """
  found, first = [], 0
  for episode in episodes if repeats else ():
    data = dataset.read_episode(int(episode), images=False)
    chunks_FTA, _ = action_chunks(data.actions, np.arange(len(data)), APPROACH_STEPS)
    grasped_F = columns.extra(data.state, (GRASPED,))[:, 0]
    found.append(first + np.flatnonzero(approaches(chunks_FTA, grasped_F)))
    first += len(data)
  return np.repeat(np.concatenate(found), repeats) if found else np.zeros(0, np.int64)


def approaches(chunks_FTA: np.ndarray, grasped_F: np.ndarray) -> np.ndarray:
  """Returns bool[F] of the first APPROACH_STEPS of chunks, whose actions start with dx, dy, dz and dyaw."""
  sideways_F = np.linalg.norm(chunks_FTA[..., :2].sum(axis=1), axis=-1) > APPROACH_STEPS * APPROACH_M
  turning_F = np.abs(chunks_FTA[..., 3].sum(axis=1)) > APPROACH_STEPS * APPROACH_RAD
  return (sideways_F | turning_F) & (grasped_F < 0.5)
