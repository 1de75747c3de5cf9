"""Which rollouts a classifier is trained on: those of one checkpoint of the policy, validated on those of another.

A classifier that has seen one checkpoint's failures knows that checkpoint's quirks; what it says of another one's is
what decides which epoch, and which pair of checkpoints, is kept.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from pi0rag_jax.curation import metrics, training
from pi0rag_jax.curation.inputs import Episodes
from pi0rag_jax.curation.training import TrainedClassifier, TrainingConfig
from pi0rag_jax.errors import Pi0RagError

_log = logging.getLogger(__name__)


def cross_validate(name: str, options: Mapping[str, Any], rollouts: Mapping[str, Episodes], config: TrainingConfig, *,
                   pairs: Iterable[tuple[str, str]] = ()) -> tuple[TrainedClassifier, dict[str, float]]:
  """Returns the classifier with the least validation loss of all epochs and pairs, and each pair's least loss.

  Args:
    name, options: of the registry.
    rollouts: checkpoint -> its labelled rollouts, in the order of the training.
    config: see TrainingConfig.
    pairs: (trained on, validated on); none: see `default_pairs`.
  Raises:
    Pi0RagError: an unknown checkpoint, rollouts without labels, those of a pair that are of one class only, or no pair.
  """
  pairs = [(str(first), str(second)) for first, second in pairs] or default_pairs(rollouts)
  for checkpoint in {each for pair in pairs for each in pair}:
    if checkpoint not in rollouts:
      raise Pi0RagError(f"no rollouts of '{checkpoint}'; there are those of {', '.join(rollouts) or 'none'}")
    training.check_classes(checkpoint, rollouts[checkpoint])
  found = [training.train(name, options, rollouts[a], rollouts[b], config, trained_on=a, validated_on=b)
           for a, b in pairs]
  losses = {f"{c.trained_on} -> {c.validated_on}": c.validation_loss for c in found}
  return min(found, key=lambda c: c.validation_loss), losses


def default_pairs(rollouts: Mapping[str, Episodes]) -> list[tuple[str, str]]:
  """Returns every checkpoint but the last with the last, so that all losses are of the same episodes.

  Checkpoints that always failed, as the first ones may, or never did, are left out with a warning.
  """
  usable, reasons = [], []
  for name, episodes in rollouts.items():
    training.check_labels(name, episodes)
    if metrics.both_classes(episodes.success_J):
      usable.append(name)
    else:
      reasons.append(training.one_class(name, episodes))
      _log.warning("checkpoint left out: %s", reasons[-1])
  if len(usable) < 2:
    raise Pi0RagError(". ".join([f"a classifier is trained on the rollouts of one checkpoint and validated on those of "
                                 f"another, there are such of {', '.join(usable) or 'none'}: give two or more",
                                 *reasons]))
  return [(checkpoint, usable[-1]) for checkpoint in usable[:-1]]
