"""What a policy's own rollouts tell of demonstrations, where things looked alike: the cure for a majority's habit.

Agreement follows the majority. Which of two habits is the bad one only an outcome says: a rollout that failed did, at
some step, what the successful ones did not do there, and a demonstration that did the same is worth less.
"""

from collections.abc import Mapping

import numpy as np

from pi0rag_jax.curation.scorers.agreement import NEIGHBOURS, weighted_agreement
from pi0rag_jax.curation.scorers.demonstrations import Steps, joined
from pi0rag_jax.curation.scorers.neighbours import nearest, standardized
from pi0rag_jax.curation.training import input_scale
from pi0rag_jax.errors import Pi0RagError

# Successes below which a weight is not to be trusted: without any, outcomes say nothing.
LEAST = 2
# Of ranks from 0 to 1: the better half has seven eighths of all votes.
VOTE = 2


def outcome_agreement(steps: Steps, rollouts: Mapping[str, Steps], *, neighbours: int = 8) -> np.ndarray:
  """Returns float64[J]: how much nearer an episode's actions are to those of successful rollouts than of failed ones.

  For each step, the chunks of the nearest steps of either kind are compared with its own; the mean over the episode of
  the failures' distance minus the successes' is above 0 for what succeeded. Where both did the same it is 0.

  Args:
    steps: the demonstrations.
    rollouts: of checkpoints of a policy that was trained on them, with outcomes, cut as classifiers read them, see
      `inputs.common_frames`.
    neighbours: steps of either kind that are looked at.
  Raises:
    Pi0RagError: too few rollouts of one kind.
  """
  seen = joined(list(rollouts.values()))
  successes, failures = (int((seen.success_J == ending).sum()) for ending in (1, 0))
  if min(successes, failures) < LEAST:
    raise Pi0RagError(f"{successes} of {len(seen)} rollouts succeeded, {failures} failed: outcomes tell demonstrations "
                      f"apart where there are {LEAST} or more of both")
  look_scale, chunk_scale = (input_scale(values, centred=True) for values in (steps.looks_NF, steps.chunks_ND))
  looks_NF, chunks_ND = standardized(steps.looks_NF, look_scale), standardized(steps.chunks_ND, chunk_scale)
  distance = {success: _distance(looks_NF, chunks_ND, steps.episode_N, standardized(kind.looks_NF, look_scale),
                                 standardized(kind.chunks_ND, chunk_scale), neighbours)
              for success, kind in ((success, seen.ended(success)) for success in (True, False))}
  return steps.mean_of(distance[False] - distance[True])


def agreement_by_success(steps: Steps, rollouts: Mapping[str, Steps], *, neighbours: int = NEIGHBOURS) -> np.ndarray:
  """Returns float64[J] in (0, 1]: agreement in which a demonstration's say grows with what outcomes say of it.

  An episode's weight is the VOTE-th power of its rank by `outcome_agreement`: those that did as failures did hardly
  vote, however many they are.
  """
  score_J = outcome_agreement(steps, rollouts)
  rank_J = (np.argsort(np.argsort(score_J)) + 1) / len(score_J)
  return weighted_agreement(steps, rank_J**VOTE, neighbours=neighbours)


def _distance(looks_NF, chunks_ND, episode_N, others_RF, their_chunks_RD, count: int) -> np.ndarray:
  """Returns float64[N], the root mean square distance of each chunk from the median of the nearest others'."""
  found_N = np.zeros(len(looks_NF))
  for rows, nearest_BK, _ in nearest(looks_NF, episode_N, count, references_RF=others_RF):
    agreed_BD = np.median(their_chunks_RD[nearest_BK], axis=1)
    found_N[rows] = np.sqrt(np.square(chunks_ND[rows] - agreed_BD).mean(axis=-1))
  return found_N
