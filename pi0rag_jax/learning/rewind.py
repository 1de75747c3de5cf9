"""Where a failed episode went wrong: the decision to go back to, with and without an expert's help.

`privileged` compares every executed chunk with what the expert would have done there. `detected` needs no expert: a
policy that is lost changes its mind, so consecutive chunks contradict each other where they overlap; that, and what
the failure detectors noticed, are all that it reads.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from pi0rag_jax.errors import unknown_name
from pi0rag_jax.learning.detectors import TIMEOUT, Findings
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering import paths
from pi0rag_jax.worlds.episode import Step

DETECTED, PRIVILEGED = RULES = ("detected", "privileged")


@dataclasses.dataclass(frozen=True)
class RewindConfig:
  """How the moment is found. Costs are mean path costs, about cm."""

  rule: str = PRIVILEGED  # one of RULES
  band: int = 6  # ticks by which policy and expert may differ in time, see paths.aligned_residual
  expert_cost: float = 1.5  # from which policy and expert disagree,
  persistence: int = 2  # for so many decisions in a row
  own_cost: float = 2.5  # from which the policy disagrees with itself, on the mean of `own_window` decisions
  own_window: int = 3
  margin_ticks: int = 8  # back from where a detected failure began

  def __post_init__(self):
    if self.rule not in RULES:
      raise unknown_name("rewind rule", self.rule, RULES)


def privileged(steps: Sequence[Step], expert_NTA: np.ndarray, space: ActionSpace, config: RewindConfig) -> int:
  """Returns the index of the first decision from which the executed chunks disagree with the expert's.

  The largest disagreement, when none persists.
  """
  executed_NTA = np.stack([step.actions_TA for step in steps])
  residual_NTA = paths.aligned_residual(executed_NTA, expert_NTA, space, band=config.band)
  cost_N = paths.disagreement(residual_NTA, space)
  over_N = cost_N > config.expert_cost
  for i in range(len(steps) - config.persistence + 1):
    if over_N[i : i + config.persistence].all():
      return i
  return int(cost_N.argmax())


def detected(steps: Sequence[Step], findings: Findings, space: ActionSpace, config: RewindConfig) -> int:
  """Returns the index of the decision at which the policy lost its way, as far as it can tell by itself.

  That is the first, after something was held last and before the failure was noticed, from which it keeps
  contradicting itself; else the last before a margin ahead of the failure; else where it contradicts itself most.
  """
  ticks_N = np.array([step.tick for step in steps])
  cause = findings.cause
  noticed = cause is not None and cause.kind != TIMEOUT
  end = cause.onset if cause is not None else int(ticks_N[-1]) + 1
  first, last = np.searchsorted(ticks_N, (findings.recovered, end)).tolist()
  first = min(first, len(steps) - 1)
  cost_N = contradiction(steps, space)
  window = np.ones(config.own_window) / config.own_window
  mean_N = np.convolve(np.append(cost_N, np.zeros(config.own_window - 1)), window, "valid")  # of what follows
  lost = np.flatnonzero(np.minimum(cost_N, mean_N)[first:last] > config.own_cost)
  if len(lost):
    return first + int(lost[0])
  if noticed:
    return max(int(np.searchsorted(ticks_N, end - config.margin_ticks, side="right")) - 1, 0)
  return first + int(mean_N[first:].argmax())


def contradiction(steps: Sequence[Step], space: ActionSpace) -> np.ndarray:
  """Returns by how much each chunk disagrees with the one before where both speak of the same ticks, float[N].

  The first has none before it: 0. So have chunks that begin after the end of the one before.
  """
  cost_N = np.zeros(len(steps))
  for i, (before, after) in enumerate(itertools.pairwise(steps), 1):
    passed = after.tick - before.tick
    meant_TA = paths.to_path(before.actions_TA[passed:], space)
    if len(meant_TA):
      means_TA = paths.to_path(after.actions_TA[: len(meant_TA)], space)
      cost_N[i] = paths.disagreement(means_TA - meant_TA, space)
  return cost_N
