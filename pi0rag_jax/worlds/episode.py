"""What is kept of an episode while and after it runs: one step per decision, and how it ended."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from pi0rag_jax.data.validation import POLICY


@dataclasses.dataclass(frozen=True)
class Step:
  """One decision of an episode."""

  tick: int  # control ticks since the start of the episode
  snapshot: Any  # restores the moment of the decision
  key_E: np.ndarray
  base_TA: np.ndarray  # the policy's own chunk; of an attempt too, the one without noise
  actions_TA: np.ndarray  # the chunk that was executed, from its start
  used: int  # neighbours that had a say
  ids_K: np.ndarray  # records retrieved, -1 where none
  weight_K: np.ndarray  # how much of a say each had, 0 to 1
  missed_deadline: bool = False  # the memory did not answer in time
  observation: Mapping[str, Any] | None = None  # what the policy saw, where it is asked for
  by: str = POLICY  # who acted, one of data.validation.ACTORS
  done_NA: np.ndarray | None = None  # what was executed until the next decision; None: the chunk's beginning
  prompt: str = ""  # what the robot was asked to do; '' is the episode's
  label_TA: np.ndarray | None = None  # what somebody who watched says should have been done from here on


@dataclasses.dataclass(frozen=True)
class Job:
  """An episode to run, from the start or from a moment of an earlier one."""

  seed: int
  index: int  # position in the stream or the evaluation
  rewind: Any = None  # snapshot to begin from; None begins anew
  by_expert: bool = False  # the expert acts; the policy is asked for its keys and chunks all the same
  watched: bool = False  # the expert may take over
  attempt: int = 0  # from 1 on the policy tries again by itself, each attempt with its own noise
  trust: float = 1.0  # in [0, 1], how much of the memory's change is made; 0: the policy alone
  repeat: bool = False  # the policy alone does again what it did with the memory's say, for what that has changed
  past: int | None = None  # decisions that it took when it ran before: it is not run again, but keeps its slot as long


@dataclasses.dataclass
class Trace:
  """An episode as it happened."""

  job: Job
  prompt: str = ""
  steps: list[Step] = dataclasses.field(default_factory=list)
  sensors: list[Mapping] = dataclasses.field(default_factory=list)  # one per control tick
  truths: list[Any] = dataclasses.field(default_factory=list)  # likewise, where a simulation is asked for them
  latency_ms: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # per decision, of its batch
  outcome: str = ""  # 'success', 'failure' or 'crashed' once it is over
  ticks: int = 0
  error: str = ""  # traceback or simulator fault when crashed
  partial: bool | None = None  # whether the task was partly done; None where the world does not tell
  stages: int | None = None  # tasks that the policy did alone, in an episode that asks for several one after the other

  @property
  def deadline_misses(self) -> int:
    """Decisions that had to do without the memory."""
    return sum(step.missed_deadline for step in self.steps)

  @property
  def helped(self) -> bool:
    """Whether somebody else than the policy acted."""
    return any(step.by != POLICY for step in self.steps)

  @property
  def helped_ticks(self) -> int:
    """Control ticks in which somebody else than the policy acted."""
    ends = [*(step.tick for step in self.steps[1:]), self.ticks]
    return sum(end - step.tick for step, end in zip(self.steps, ends) if step.by != POLICY)

  def executed(self) -> np.ndarray:
    """Returns the actions that were sent to the robot, float32[N, A], one per tick."""
    ends = [*(step.tick for step in self.steps[1:]), self.ticks]
    return np.concatenate([step.actions_TA[: end - step.tick] if step.done_NA is None else step.done_NA
                           for step, end in zip(self.steps, ends)])
