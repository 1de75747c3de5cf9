"""The online loop: what the memory learns from each episode while the policy works.

A success leaves anchors. After a failure the learner finds the moment where the policy and the expert parted,
asks for a take-over from there, and records what the expert did and what it would have done around that moment.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pi0rag_jax.learning import corrections
from pi0rag_jax.learning.corrections import CorrectionConfig
from pi0rag_jax.learning.failure import failure_kind
from pi0rag_jax.learning.trace import Job, Trace
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.policy.spec import ActionLayout


@dataclasses.dataclass(frozen=True)
class OnlineConfig:
  """How much the expert may help, and how its help is recorded."""

  corrected_max: int = 40  # episodes that the expert may take over
  corrections: CorrectionConfig = CorrectionConfig()


@dataclasses.dataclass(frozen=True)
class Lesson:
  """What came of an episode."""

  takeover: Job | None = None  # to be run next; the lesson is complete only then
  trace: Trace | None = None  # the policy's own episode, once the lesson is complete
  failure_kind: str = ""
  corrected: bool = False
  records_added: int = 0


@dataclasses.dataclass(frozen=True)
class _Failure:
  """A failed episode that waits for its take-over."""

  trace: Trace
  kind: str
  expert_NTA: np.ndarray
  diverged: int


class OnlineLearner:
  """Turns the traces of a stream of episodes into memory records.

  Args:
    expert_plan: returns the expert's chunks float32[N, T, A] at N snapshots.
    corrected: take-overs already spent, when a stream is resumed.
  """

  def __init__(self, memory: Memory, layout: ActionLayout, *, task: str, condition: str, band: int,
               expert_plan: Callable[[Sequence[Any]], np.ndarray], config: OnlineConfig, corrected: int = 0):
    self._memory = memory
    self._layout = layout
    self._task = task
    self._condition = condition
    self._band = band
    self._expert_plan = expert_plan
    self._config = config
    self._takeovers = corrected
    self._waiting: dict[int, _Failure] = {}

  def learn(self, trace: Trace) -> Lesson:
    """Returns what an episode (the policy's, or a take-over of it) teaches; records are durable on return."""
    if trace.job.by_expert:
      return self._learn_takeover(trace)
    if trace.outcome == "success":
      records = corrections.anchors(trace, self._context(trace))
      return Lesson(trace=trace, records_added=len(self._memory.add(records)))
    if trace.outcome == "crashed":
      return Lesson(trace=trace)
    kind = failure_kind(trace.sensors)
    if self._takeovers >= self._config.corrected_max:
      return Lesson(trace=trace, failure_kind=kind)
    self._takeovers += 1
    expert_NTA = self._expert_plan([step.snapshot for step in trace.steps])
    diverged = corrections.divergence(trace.steps, expert_NTA, self._layout, self._config.corrections,
                                      band=self._band)
    self._waiting[trace.job.seed] = _Failure(trace, kind, expert_NTA, diverged)
    rewind = trace.steps[diverged].snapshot
    return Lesson(takeover=Job(trace.job.seed, trace.job.index, rewind, by_expert=True))

  def _learn_takeover(self, trace: Trace) -> Lesson:
    failure = self._waiting.pop(trace.job.seed)
    if trace.outcome != "success":  # an expert that fails teaches nothing
      return Lesson(trace=failure.trace, failure_kind=failure.kind, corrected=True)
    context = self._context(failure.trace)
    records = corrections.relabelled(failure.trace, failure.expert_NTA, failure.diverged, context,
                                     self._config.corrections, failure.kind)
    records += corrections.takeover(trace, context, failure.kind)
    return Lesson(trace=failure.trace, failure_kind=failure.kind, corrected=True,
                  records_added=len(self._memory.add(records)))

  def _context(self, trace: Trace) -> corrections.RecordContext:
    return corrections.RecordContext(self._task, trace.prompt, self._condition, trace.job.seed)
