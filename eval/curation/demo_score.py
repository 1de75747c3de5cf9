"""Demo-SCORE's classifiers, and its extras: ensembles, adaptive thresholds, an update by new rollouts."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pi0rag_jax.curation import cross_validation, scoring, thresholds, training
from pi0rag_jax.curation.inputs import Episodes
from pi0rag_jax.curation.scorers import Steps, joined
from pi0rag_jax.curation.thresholds import RolloutScores
from pi0rag_jax.curation.training import TrainedClassifier
from pi0rag_jax.errors import Pi0RagError

NAME, SINGLE, UPDATED = "demo_score", "step_mlp0", "demo_score_updated"
KINDS = ("step_mlp", "transformer", "pool_mlp")
# Of members, each a kind and the policy whose rollouts it read.
ENSEMBLES = {NAME: (SINGLE,), "demo_score_kinds": tuple(f"{kind}0" for kind in KINDS),
             "demo_score_policies": ("step_mlp0", "step_mlp1")}
ADAPTIVE = "demo_score_adaptive"  # keeps what scores as training rollouts do on average, however many that are

Members = dict[str, tuple[TrainedClassifier, RolloutScores]]


def members(seen: Mapping[str, Steps], silent: dict[str, str]) -> Members:
  """Returns a classifier of every kind for both policies' rollouts, `early0`, `late0`, `early1` and `late1`.

  Of rollouts that all ended alike nothing can be learned: `silent` is told why.
  """
  found: Members = {}
  for kind, run in itertools.product(KINDS, (0, 1)):
    with told(silent, f"{kind}{run}"):
      found[f"{kind}{run}"] = classifier(kind, {name: seen[name] for name in (f"early{run}", f"late{run}")})
  return found


def ensembles(judged: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the mean scores of every ensemble all of whose members have a say, float64[J]."""
  return {name: np.mean([judged[part] for part in parts], axis=0) for name, parts in ENSEMBLES.items()
          if all(part in judged for part in parts)}


def updated(trained: TrainedClassifier, seen: Mapping[str, Steps], later: Steps, steps: Steps) -> np.ndarray:
  """Returns float64[J], the scores of a classifier after more training with rollouts that came in since."""
  rollouts = as_episodes(joined([seen["early0"], later]))
  return judge(training.update(trained, rollouts, as_episodes(seen["late0"]), training.TrainingConfig()), steps)


def classifier(kind: str, seen: Mapping[str, Steps]) -> tuple[TrainedClassifier, RolloutScores]:
  """Returns (Demo-SCORE's classifier of rollouts by checkpoint, what it says of them)."""
  episodes = {name: as_episodes(steps) for name, steps in seen.items()}
  trained, _ = cross_validation.cross_validate(kind, {}, episodes, training.TrainingConfig())
  first, last = episodes[trained.trained_on], episodes[trained.validated_on]
  return trained, RolloutScores(scoring.episode_scores(trained, first), first.success_J,
                                scoring.episode_scores(trained, last), last.success_J)


def as_episodes(steps: Steps) -> Episodes:
  """Returns what classifiers read: looks beside the next action."""
  return Episodes(tuple(np.concatenate([look, chunk[:, 0]], axis=1, dtype=np.float32)
                        for look, chunk in zip(steps.looks, steps.chunks)), steps.success_J)


def judge(trained: TrainedClassifier, steps: Steps) -> np.ndarray:
  """Returns float64[J], what a classifier says of demonstrations."""
  return scoring.episode_scores(trained, as_episodes(steps))


def thresholds_of(seen: RolloutScores, scores_J: np.ndarray, clean_J: np.ndarray, share: float
                  ) -> dict[str, dict[str, Any]]:
  """Returns what every rule of `thresholds` would keep by a classifier's scores."""
  found = {}
  for rule in thresholds.RULES:
    value = share if rule == "fraction" else None
    border = thresholds.threshold(rule, value=value, scores_J=scores_J, rollouts=(seen,))
    kept_J = thresholds.kept(rule, border, scores_J, value=value)
    found[rule] = {"threshold": border, "kept": int(kept_J.sum()), "of": len(kept_J),
                   "precision": float(clean_J[kept_J].mean()) if kept_J.any() else None}
  return found


@contextlib.contextmanager
def told(silent: dict[str, str], name: str) -> Iterator[None]:
  """Notes why something cannot be said, such as of rollouts that all failed."""
  try:
    yield
  except Pi0RagError as error:
    silent[name] = str(error)
