"""Scores of demonstrations behind one interface: a pure function of their steps, and of a policy's rollouts if wanted.

Greater is better, for all of them; what `length` and the others without a model hold for better is an assumption, and
where it is wrong their area under the curve is below one half.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pi0rag_jax.curation.scorers import (
  agreement,
  classifying,
  duplicates,
  information,
  outcomes,
  plain,
  progress,
  prompts,
)
from pi0rag_jax.curation.scorers.demonstrations import Steps, joined
from pi0rag_jax.errors import Pi0RagError, unknown_name

__all__ = ["SCORERS", "Scorer", "Steps", "combined", "joined", "ranks", "score"]


@dataclasses.dataclass(frozen=True)
class Scorer:
  """One way to score demonstrations."""

  function: Callable[..., np.ndarray]  # (steps, options) -> float64[J]; with rollouts (steps, rollouts, options)
  text: str
  rollouts: bool = False  # whether it reads a policy's rollouts, by checkpoint


SCORERS: dict[str, Scorer] = {
  "random": Scorer(plain.random, "chance"),
  "length": Scorer(plain.length, "shorter is better"),
  "pace": Scorer(plain.speed, "faster is better"),
  "smoothness": Scorer(plain.smoothness, "spectral arc length of the tool's speed (RINSE)"),
  "deminf": Scorer(information.mutual_information, "mutual information of looks and actions (DemInf)"),
  "progress": Scorer(progress.progress, "time in which the task comes no nearer to its end (SCIZOR)"),
  "novelty": Scorer(duplicates.novelty, "dissimilarity to the most similar step of another one (SCIZOR)"),
  "agreement": Scorer(agreement.agreement, "whether others did the same where things looked alike"),
  "prompt": Scorer(prompts.prompt_agreement, "whether those who did the same were asked for the same"),
  "demo_score": Scorer(classifying.demo_score, "a classifier of a policy's rollouts (Demo-SCORE)", rollouts=True),
  "outcomes": Scorer(outcomes.outcome_agreement, "nearer to successful rollouts than to failed ones", rollouts=True),
  "agreement_by_success": Scorer(
    outcomes.agreement_by_success, "agreement in which outcomes decide who has a say", rollouts=True),
}


def score(name: str, steps: Steps, rollouts: Mapping[str, Steps] | None = None, **options: Any) -> np.ndarray:
  """Returns float64[J], greater is better.

  Args:
    name: one of SCORERS.
    steps: of J demonstrations.
    rollouts: by checkpoint, in the order of the training; for scorers that read any.
    options: of the scorer.
  Raises:
    Pi0RagError: an unknown name or option, or rollouts are missing or tell nothing.
  """
  if name not in SCORERS:
    raise unknown_name("scorer", name, SCORERS)
  scorer = SCORERS[name]
  known = [each.name for each in inspect.signature(scorer.function).parameters.values()
           if each.kind is inspect.Parameter.KEYWORD_ONLY]
  for option in options:
    if option not in known:
      raise unknown_name(f"option of the scorer {name}", option, known)
  if not scorer.rollouts:
    return scorer.function(steps, **options)
  if not rollouts:
    raise Pi0RagError(f"the scorer '{name}' reads rollouts of a policy that was trained on the demonstrations, and "
                      "there are none: give some, or choose a scorer without")
  return scorer.function(steps, rollouts, **options)


def ranks(scores_J: np.ndarray) -> np.ndarray:
  """Returns float64[J] in [0, 1], the share of the others that score less; ties share their mean, nan stays."""
  scores_J = np.asarray(scores_J, float)
  known_J = np.isfinite(scores_J)
  found_J = np.full(len(scores_J), np.nan)
  _, place_K, count_K = np.unique(scores_J[known_J], return_inverse=True, return_counts=True)
  middle_K = np.cumsum(count_K) - (count_K + 1) / 2
  found_J[known_J] = middle_K[place_K] / max(int(known_J.sum()) - 1, 1)
  return found_J


def combined(scores: Sequence[np.ndarray]) -> np.ndarray:
  """Returns float64[J], the mean of scorers' ranks: what they have in common, whatever the unit of each."""
  if not scores:
    raise Pi0RagError("a combination of no scorers; name two or more")
  return np.mean([ranks(each) for each in scores], axis=0)
