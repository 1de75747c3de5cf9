"""Demo-SCORE as a function: a classifier learns how a policy's rollouts ended, and is asked about demonstrations.

Source: Demo-SCORE (arXiv 2503.03707). `train.curate` has the same in stages that are resumed, with several classifiers.
"""

from collections.abc import Mapping

import numpy as np

from pi0rag_jax.curation import cross_validation, scoring
from pi0rag_jax.curation.inputs import Episodes
from pi0rag_jax.curation.scorers.demonstrations import Steps
from pi0rag_jax.curation.training import TrainingConfig


def demo_score(steps: Steps, rollouts: Mapping[str, Steps], *, kind: str = "step_mlp", epochs: int = 300,
               seed: int = 0) -> np.ndarray:
  """Returns float64[J] in [0, 1], the mean over an episode's steps of a classifier's probability of success.

  Args:
    steps: the demonstrations.
    rollouts: by checkpoint; the classifier of the least validation loss counts, each trained on one checkpoint's
      rollouts and validated on the last one's.
    kind: of `classifiers.CLASSIFIERS`.
    epochs, seed: of the training.
  """
  episodes = {name: Episodes(each.looks, each.success_J) for name, each in rollouts.items()}
  trained, _ = cross_validation.cross_validate(kind, {}, episodes, TrainingConfig(epochs=epochs, seed=seed))
  return scoring.episode_scores(trained, Episodes(steps.looks, steps.success_J))
