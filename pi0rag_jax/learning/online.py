"""The online loop: what the memory learns from each episode while the policy works.

A success leaves anchors. A supervisor may take over while an episode runs (`taught_by="takeover"`), as a person would.
Or a failure is taken back to where it went wrong (`taught_by="rewind"`), which takes a simulator: there the policy may
try again by itself, with noise; then an expert may take over. What worked is recorded, with what the policy would have
done.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.learning import lessons, rewind
from pi0rag_jax.learning.asking import Asker, AskingConfig
from pi0rag_jax.learning.detectors import DetectorConfig, Findings, detect
from pi0rag_jax.learning.lessons import CorrectionConfig, RecordContext
from pi0rag_jax.learning.rewind import RewindConfig
from pi0rag_jax.learning.supervisor import SupervisorConfig, Watch
from pi0rag_jax.learning.trust import TrustConfig
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.worlds.episode import Job, Trace

# How an expert helps: in an episode that runs, or after it failed, from a moment to which a simulator goes back.
TAKEOVER, REWIND = TEACHING = ("takeover", "rewind")


@dataclasses.dataclass(frozen=True)
class OnlineConfig:
  """Who may help after a failure, and how help is recorded."""

  corrected_max: int = 40  # episodes that the expert may take over; 0: there is none
  taught_by: str = REWIND  # one of TEACHING
  retries: int = 0  # times that the policy tries a failure again by itself, before the expert is asked
  rewind: RewindConfig = RewindConfig()
  supervisor: SupervisorConfig = SupervisorConfig()
  asking: AskingConfig = AskingConfig()  # of the supervisor to watch
  corrections: CorrectionConfig = CorrectionConfig()
  detectors: DetectorConfig = DetectorConfig()
  trust: TrustConfig = TrustConfig()

  def __post_init__(self):
    if self.taught_by not in TEACHING:
      raise unknown_name("teaching", self.taught_by, TEACHING)
    if min(self.corrected_max, self.retries) < 0:
      raise Pi0RagError(f"corrected_max is {self.corrected_max} and retries {self.retries}, allowed: 0 or more")
    if not self.corrected_max and self.retries and self.rewind.rule == rewind.PRIVILEGED:
      raise Pi0RagError("with corrected_max=0 no expert tells where to go back to: set rewind.rule='detected'")

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> "OnlineConfig":
    """Returns the configuration with some fields given, those of its parts in mappings of their own.

    Errors: Pi0RagError for an unknown name.
    """
    return _from_dict(cls, values, "")


def _from_dict(cls, values: Mapping[str, Any], prefix: str):
  fields = {field.name: field for field in dataclasses.fields(cls)}
  given = {}
  for name, value in values.items():
    if name not in fields:
      raise unknown_name("setting of the stream", prefix + name, [prefix + field for field in fields])
    part = type(fields[name].default)
    given[name] = _from_dict(part, value, f"{prefix}{name}.") if dataclasses.is_dataclass(part) else value
  return cls(**given)


@dataclasses.dataclass(frozen=True)
class Lesson:
  """What came of an episode."""

  next_job: Job | None = None  # to be run next; the lesson is complete only then
  trace: Trace | None = None  # the policy's own episode, once the lesson is complete
  failure_kind: str = ""
  rewind: int | None = None  # decision to which a failure was taken back
  attempts: int = 0  # of the policy to do better by itself
  corrected: bool = False  # an expert took over
  records_added: int = 0
  again: tuple[int, ...] = ()  # decisions of the repetition, of each attempt and of the take-over
  alone: str = ""  # how the policy's repetition without the memory ended; '': there was none
  watched_s: float = 0.0  # of the episode, in which a supervisor watched or acted
  looks: int = 0  # times that the supervisor began to


@dataclasses.dataclass(frozen=True)
class _Failure:
  """A failed episode that waits for what comes after it."""

  trace: Trace
  context: RecordContext
  rewind: int
  with_expert: bool  # the expert takes over if the policy itself does not make it
  attempts: int = 0
  again: tuple[int, ...] = ()

  def job(self, **changes) -> Job:
    """Returns an episode from the moment to go back to."""
    own = self.trace.job
    return Job(own.seed, own.index, self.trace.steps[self.rewind].snapshot, trust=own.trust, **changes)

  def lesson(self, **changes) -> Lesson:
    return Lesson(trace=self.trace, failure_kind=self.context.failure_kind, rewind=self.rewind,
                  attempts=self.attempts, again=self.again, **changes)


class OnlineLearner:
  """Turns the traces of a stream of episodes into memory records.

  Args:
    expert_plan: returns the expert's chunks float32[N, T, A] at N snapshots.
    tick_s: between two actions of a chunk.
    time_limit_s: of an episode.
    corrected: take-overs already spent, when a stream is resumed.
    stream: whose episodes' commits have the tokens of `tokens`; without one they have none.
  """

  def __init__(self, memory: Memory, space: ActionSpace, *, task: str, condition: str,
               expert_plan: Callable[[Sequence[Any]], np.ndarray], config: OnlineConfig, tick_s: float,
               corrected: int = 0, stream: str = "", time_limit_s: float = math.inf):
    self._memory = memory
    self._space, self._tick_s, self._time_limit_s = space, tick_s, time_limit_s
    self._task = task
    self._condition = condition
    self._expert_plan = expert_plan
    self._config = config
    self._stream = stream
    self._corrected = corrected
    self._reserved: set[int] = set()  # seeds of episodes that an expert may take over: others end in between
    self._waiting: dict[int, _Failure] = {}
    self._unsettled: dict[int, Trace] = {}  # by seed, episodes that the policy alone does again
    self._repetitions: dict[int, Trace] = {}  # by seed, of episodes that are not over
    self._asker = Asker(memory, space, config.asking)
    self._watches: dict[int, Watch] = {}  # by seed

  def launch(self, job: Job) -> Job:
    """Returns a job with the supervisor's attention, where there is any left for it."""
    new = job.rewind is None and not job.attempt and not job.repeat
    watched = new and self._config.taught_by == TAKEOVER and self._reserve(job.seed)
    return dataclasses.replace(job, watched=watched)

  def watch(self, job: Job) -> Watch | None:
    """Returns who may take over in an episode."""
    if not job.watched:
      return None
    asks = self._asker.episode(job.seed)
    watch = self._watches[job.seed] = Watch(self._config.supervisor, self._space, self._tick_s, job.seed, asks,
                                            self._time_limit_s)
    return watch

  def learn(self, trace: Trace) -> Lesson:
    """Returns what an episode (the policy's, an attempt or a take-over) teaches; records are durable on return."""
    seed, again = trace.job.seed, trace.job.rewind is not None or trace.job.attempt > 0
    if trace.job.repeat:
      self._repetitions[seed] = trace
      trace = self._unsettled.pop(seed)
    elif not again and self._config.trust.repeats(trace):
      self._unsettled[seed] = trace  # what it teaches, and whom it blames, is one step with what comes of it
      return Lesson(next_job=Job(seed, trace.job.index, trust=0.0, repeat=True))
    lesson = self._watched(trace) if trace.job.watched else self._learn(trace)
    if lesson.trace is not None and seed in self._repetitions:
      alone = self._repetitions.pop(seed)
      lesson = dataclasses.replace(lesson, again=(len(alone.steps), *lesson.again), alone=alone.outcome)
    return lesson

  def _watched(self, trace: Trace) -> Lesson:
    """Returns what an episode teaches in which a supervisor might have taken over."""
    self._settle(trace.job.seed, corrected=trace.helped)
    watch = self._watches.pop(trace.job.seed, None)
    lesson = self._learn(trace)
    if watch is None:
      return lesson
    return dataclasses.replace(lesson, watched_s=watch.watched_s(trace.ticks * self._tick_s), looks=watch.looks)

  def _learn(self, trace: Trace) -> Lesson:
    if trace.job.by_expert:
      return self._learn_takeover(trace)
    if trace.job.attempt:
      return self._learn_attempt(trace)
    if trace.outcome == "crashed":
      return Lesson(trace=trace, corrected=trace.helped)
    if trace.helped or trace.outcome == "success":
      return self._learn_whole(trace)
    self._add(trace.job.seed, [], self._outcomes(trace))
    return self._learn_failure(trace, detect(trace.sensors, self._config.detectors, timed_out=True))

  def _learn_whole(self, trace: Trace) -> Lesson:
    """Returns what an episode teaches that succeeded, or in which the supervisor took over."""
    failed = trace.outcome != "success"
    kind = detect(trace.sensors, self._config.detectors, timed_out=failed).kind if trace.helped else ""
    records = lessons.of_episode(trace, self._space, self._context(trace, kind), self._config.corrections)
    return Lesson(trace=trace, failure_kind=kind, corrected=trace.helped,
                  records_added=self._add(trace.job.seed, records, self._outcomes(trace)))

  def _outcomes(self, trace: Trace) -> list:
    """Returns what the memory is told of an episode's end."""
    alone = self._repetitions.get(trace.job.seed)
    if alone is None or alone.outcome == "crashed":
      return lessons.outcomes(trace)
    failed = trace.outcome != "success" or trace.helped
    return lessons.outcomes(trace, broken=failed and alone.outcome == "success")

  def pass_over(self, job: Job, decisions: Sequence[int], *, corrected: bool, repeated: bool = False) -> Lesson:
    """Returns what comes next of an episode that was learned from before the stream was interrupted.

    Args:
      job: the one that is over; its `attempt` counts the jobs of the episode.
      decisions: of each of them, the policy's own first.
      repeated: the second of them is the policy's own repetition.
    """
    self._watches.pop(job.seed, None)
    if len(decisions) > 1 + repeated and job.attempt == repeated:
      self._reserve(job.seed)
    if job.attempt + 1 < len(decisions):
      return Lesson(next_job=dataclasses.replace(job, attempt=job.attempt + 1, past=decisions[job.attempt + 1]))
    self._settle(job.seed, corrected=corrected)
    return Lesson()

  def _reserve(self, seed: int) -> bool:
    """Returns whether an expert may take an episode over."""
    if self._corrected + len(self._reserved) >= self._config.corrected_max:
      return False
    self._reserved.add(seed)
    return True

  def _settle(self, seed: int, *, corrected: bool) -> None:
    self._reserved.discard(seed)
    self._corrected += corrected

  def _learn_failure(self, trace: Trace, findings: Findings) -> Lesson:
    with_expert = self._config.taught_by == REWIND and bool(trace.steps) and self._reserve(trace.job.seed)
    if not (with_expert or self._config.retries) or not trace.steps:
      last = max(len(trace.steps) - self._config.corrections.failed_chunks, 0)
      records = lessons.failed(trace.steps, last, self._context(trace, findings.kind), self._config.corrections)
      return Lesson(trace=trace, failure_kind=findings.kind, records_added=self._add(trace.job.seed, records))
    rule = self._config.rewind.rule if with_expert else rewind.DETECTED
    decision = self._rewind(trace, findings, rule)
    cause = findings.cause
    context = self._context(trace, findings.kind, rewind=rule, decision=decision,
                            confidence=round(cause.confidence, 3) if cause else 0.0)
    failure = _Failure(trace, context, decision, with_expert)
    self._waiting[trace.job.seed] = failure
    return self._go_on(failure)

  def _go_on(self, failure: _Failure) -> Lesson:
    """Returns who has a go at a failure now, or that nobody has."""
    if failure.attempts < self._config.retries:
      return Lesson(next_job=failure.job(attempt=failure.attempts + 1))
    if failure.with_expert:
      return Lesson(next_job=failure.job(by_expert=True))
    return self._complete(failure, [])

  def _learn_attempt(self, trace: Trace) -> Lesson:
    failure = self._ran(trace, attempts=trace.job.attempt)
    if trace.outcome != "success":
      return self._go_on(failure)
    context = dataclasses.replace(
        failure.context, provenance={**failure.context.provenance, "attempt": trace.job.attempt})
    return self._complete(failure, lessons.retried(trace, context))

  def _learn_takeover(self, trace: Trace) -> Lesson:
    failure = self._ran(trace)
    if trace.outcome != "success":  # an expert that fails teaches nothing
      return self._complete(failure, [], corrected=True)
    steps = lessons.window(failure.trace.steps, failure.rewind, self._config.corrections)
    expert_NTA = self._expert_plan([step.snapshot for step in steps])
    records = lessons.relabelled(steps, expert_NTA, failure.context)
    records += lessons.takeover(trace, failure.context)
    return self._complete(failure, records, corrected=True)

  def _ran(self, trace: Trace, **changes) -> _Failure:
    """Returns the failure that an attempt or a take-over came after, with that booked."""
    before = self._waiting[trace.job.seed]
    failure = dataclasses.replace(before, again=(*before.again, len(trace.steps)), **changes)
    self._waiting[trace.job.seed] = failure
    return failure

  def _complete(self, failure: _Failure, records: list, *, corrected: bool = False) -> Lesson:
    """Adds what a failure taught, in one durable step."""
    seed = failure.trace.job.seed
    del self._waiting[seed]
    self._settle(seed, corrected=corrected)
    records = records + lessons.failed(failure.trace.steps, failure.rewind, failure.context,
                                           self._config.corrections)
    return failure.lesson(corrected=corrected, records_added=self._add(seed, records))

  def _rewind(self, trace: Trace, findings: Findings, rule: str) -> int:
    config = self._config.rewind
    if rule == rewind.DETECTED:
      return rewind.detected(trace.steps, findings, self._space, config)
    expert_NTA = self._expert_plan([step.snapshot for step in trace.steps])
    return rewind.privileged(trace.steps, expert_NTA, self._space, config)

  def _add(self, seed: int, records: list, outcomes: Sequence = ()) -> int:
    """Tells the memory of an episode in one durable step; returns how many records it was told."""
    if not records and not outcomes:
      return 0
    lesson, ended = tokens(self._stream, seed)
    token = (lesson if records else ended) if self._stream else None
    return len(self._memory.add(records, token=token, outcomes=outcomes))

  def _context(self, trace: Trace, failure_kind: str = "", **provenance) -> RecordContext:
    origin = {"condition": self._condition, "seed": trace.job.seed, **provenance}
    return RecordContext(self._task, trace.prompt, origin, failure_kind)


def tokens(stream: str, seed: int) -> tuple[str, str]:
  """Returns the tokens of what a memory is told of an episode: of its records, and of an end that left none yet."""
  return f"{stream}: {seed}", f"{stream}: {seed} ended"
