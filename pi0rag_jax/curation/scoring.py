"""Scores of episodes by classifiers, with dropout off: from 0 to 1, an episode's being the mean over its steps."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pi0rag_jax.curation.classifiers import Classifier
from pi0rag_jax.curation.inputs import Episodes
from pi0rag_jax.curation.training import TrainedClassifier
from pi0rag_jax.errors import Pi0RagError

# Padded episodes that go to the device together.
BATCH = 64


def step_scores(trained: TrainedClassifier, episodes: Episodes) -> list[np.ndarray]:
  """Returns each episode's scores, float32[T]; of a classifier of whole episodes, float32[1]."""
  found = []
  for first in range(0, len(episodes), BATCH):
    values = episodes.values[first : first + BATCH]
    inputs_BTF, mask_BT = Episodes(values, np.zeros(len(values))).padded()
    scores = np.asarray(_apply(trained.module, trained.params, trained.standardized(inputs_BTF), mask_BT))
    found += [row[mask] if scores.ndim == 2 else row[None] for row, mask in zip(scores, mask_BT)]
  return found


def episode_scores(trained: TrainedClassifier, episodes: Episodes) -> np.ndarray:
  """Returns float64[J], the mean over the steps of each episode."""
  return np.array([scores.mean(dtype=float) for scores in step_scores(trained, episodes)])


def ensemble_scores(scores: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the mean over classifiers, float64[J], whichever policy's embeddings they read.

  Args:
    scores: float[J] of each, of the same episodes.
  """
  if not len(scores) or len({len(each) for each in scores}) != 1:
    raise Pi0RagError(f"an ensemble needs scores of the same episodes, got {[len(each) for each in scores]} scores")
  return np.mean(np.asarray(scores, float), axis=0)


@functools.partial(jax.jit, static_argnums=0)
def _apply(module: Classifier, params, inputs_BTF, mask_BT):
  logits: Any = module.apply({"params": params}, inputs_BTF, mask_BT, train=False)
  return jax.nn.sigmoid(logits)
