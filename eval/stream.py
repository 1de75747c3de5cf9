"""A stream of episodes in which the memory learns: the policy works, an expert takes over when it fails.

A stream that was killed goes on as if it had not been. Its schedule runs again from the start of its part: logged
episodes only keep their slots for as long as they took, those that were under way run again with the decisions of
the journal, and the first new decision finds the memory that it would have found.
"""

import collections
import dataclasses
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from eval.records import ALONE, PARTIAL, STAGES, EpisodeRecord
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import online
from pi0rag_jax.learning.online import Lesson, OnlineConfig, OnlineLearner
from pi0rag_jax.learning.trust import Trust
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import DamagedError
from pi0rag_jax.steering.agent import Agent
from pi0rag_jax.worlds import rollout
from pi0rag_jax.worlds.batch import BatchEnv, Plan
from pi0rag_jax.worlds.episode import Job, Trace
from pi0rag_jax.worlds.journal import Journal
from pi0rag_jax.worlds.replay import Executed


@dataclasses.dataclass(frozen=True)
class Cell:
  """What the episodes of one part of a sweep have in common; a record's fields."""

  phase: str
  policy: str
  task: str
  condition: str
  stream: str = ""
  stream_episodes: int = 0  # that had taught the memory; 0 while it learns
  came_from: str = ""
  pooled: int = 0  # streams whose memories were put together; 0: it is the stream's own


@dataclasses.dataclass(frozen=True)
class Part:
  """Episodes of a stream that run without a break, and what of it is over."""

  jobs: Sequence[Job]  # in order
  before: Sequence[EpisodeRecord]  # of the stream, over when this part began
  logged: Mapping[int, EpisodeRecord]  # of this part, by seed: they keep their place in its order
  exact: bool = True  # False where that order is not known: episodes under way begin anew, with the memory as it is


def take_up(memory: Memory, journal: Journal, stream: str, seeds: range, begin: int, done: Sequence[EpisodeRecord],
            *, asks: bool = False) -> Part:
  """Returns what is left of the part of a stream that begins with episode `begin`, after a kill or not.

  Takes back what the memory was told last of episodes that are not logged. Make the agent after this.

  Args:
    seeds: of the stream up to the part's end.
    done: the stream's logged episodes.
    asks: whether who watches an episode follows from what the memory holds as it begins; that is not run again.
  """
  done = sorted(done, key=lambda record: record.index)
  logged = {record.seed: record for record in done if record.seed in seeds[begin:]}
  whole = forget_unlogged(memory, stream, seeds, {record.seed for record in done})
  kept = set(memory.tokens())
  exact = whole and journal.whole and not asks and all(_can_be_passed_over(record, kept) for record in logged.values())
  if not exact:
    journal.clear()
    over = {record.seed for record in done}
    return Part([Job(seed, i) for i, seed in enumerate(seeds) if seed not in over], done, {}, exact=False)
  journal.forget(logged)
  jobs = [Job(seed, i, past=logged[seed].decisions if seed in logged else None)
          for i, seed in enumerate(seeds[begin:], begin)]
  return Part(jobs, [record for record in done if record.seed not in logged], logged)


def run(env: BatchEnv, agent: Agent, cell: Cell, part: Part, config: OnlineConfig, journal: Journal, *,
        time_limit: float = math.inf, steered: bool = True, loop: rollout.Loop = rollout.AT_ONCE,
        elsewhere: Sequence[EpisodeRecord] = ()) -> Iterator[tuple[EpisodeRecord, Executed | None]]:
  """Yields the record of each episode that was not logged, once what it taught is durable in the agent's memory.

  What was executed in it comes along, unless it crashed. Both are to be logged before the next one is asked for.

  Args:
    time_limit: ticks of an episode, for a supervisor who loses patience.
    steered: False lets the policy act alone, so that the stream is the same whoever learns from it.
    elsewhere: episodes of the streams that ran before, for an account that is theirs too.
  """
  memory, tick_s = agent.memory, 1 / agent.policy.spec.control_hz
  assert memory is not None, "a stream teaches a memory: give the agent one"
  learner = OnlineLearner(memory, agent.policy.space, task=cell.task, condition=cell.condition, config=config,
                          tick_s=tick_s,
                          time_limit_s=time_limit * tick_s,
                          expert_plan=lambda snapshots: expert_plans(env, snapshots),
                          corrected=sum(record.corrected for record in part.before),
                          stream=cell.stream if part.exact else "")
  trust = Trust(config.trust)
  for record in [*(elsewhere if config.trust.shared else ()), *part.before]:
    _observe(trust, record)
  queue = collections.deque(part.jobs)

  def launch(job: Job) -> Job:
    return learner.launch(trust.launch(job, cell.stream) if steered else dataclasses.replace(job, trust=0.0))

  for trace in rollout.run(env, agent, queue, launch=launch, watch=learner.watch, journal=journal, loop=loop):
    record = part.logged.get(trace.job.seed)
    if record is None:
      journal.sync()
      lesson = learner.learn(trace)
    else:
      lesson = learner.pass_over(trace.job, _decisions(record), corrected=record.corrected,
                                 repeated=ALONE in record.extra)
    if lesson.next_job is not None:
      queue.appendleft(lesson.next_job)
      continue
    if record is None:
      assert lesson.trace is not None
      record = episode_record(cell, lesson.trace, lesson, memory_records=len(memory), tick_s=tick_s)
      yield record, None if record.crashed else Executed.of_trace(cell.stream, lesson.trace)
      journal.forget([record.seed])
    _observe(trust, record)


def _observe(trust: Trust, record: EpisodeRecord) -> None:
  if record.crashed:
    trust.crashed(record.seed, record.stream)
  else:
    trust.observe(record.seed, had_a_say=record.had_a_say, success=record.policy_succeeded, alone=record.worked_alone,
                  stream=record.stream)


def _decisions(record: EpisodeRecord) -> list[int]:
  """Returns how many decisions each job of an episode took."""
  return [record.decisions, *record.extra.get("again", ())]


def _can_be_passed_over(record: EpisodeRecord, tokens: Container[str]) -> bool:
  """Returns whether it is known how long an episode took and what it taught; older code did not tell."""
  known = ("again" in record.extra) == ("rewind" in record.extra or ALONE in record.extra)
  return known and (not record.records_added or online.tokens(record.stream, record.seed)[0] in tokens)


def cell_of(record: EpisodeRecord) -> Cell:
  """Returns the cell that an episode belongs to."""
  return Cell(**{field.name: getattr(record, field.name) for field in dataclasses.fields(Cell)})


def forget_unlogged(memory: Memory, stream: str, seeds: Sequence[int], logged_seeds: Container[int]) -> bool:
  """Returns whether the memory is without a trace of the records of episodes that never reached the log.

  What it was told last is taken back. Records that others rest on, of older code say, are removed.

  Args:
    seeds: of the stream; a memory that began as a copy has records of others too.
  """
  unlogged = [seed for seed in seeds if seed not in logged_seeds]
  untold = {token for seed in unlogged for token in online.tokens(stream, seed)}
  try:
    for token in reversed(memory.tokens()):
      if token not in untold:
        break
      memory.undo(token)
  except DamagedError:
    raise
  except Pi0RagError:  # something else was changed since
    pass
  lessons = {online.tokens(stream, seed)[0] for seed in unlogged}
  known = set(unlogged)
  left = [identity for identity, record in memory.records() if record.provenance.get("seed", -1) in known]
  if left:
    memory.remove(left)
  return not left and lessons.isdisjoint(memory.tokens())


def expert_plans(env: BatchEnv, snapshots: Sequence[Any]) -> np.ndarray:
  """Returns the expert's chunks float32[N, T, A] at some moments, shared out over the slots."""
  shares = [list(snapshots[slot :: env.slots]) for slot in range(env.slots)]
  answers = env.run({slot: Plan(share) for slot, share in enumerate(shares) if share})
  chunks: dict[int, np.ndarray] = {}
  for slot, answer in answers.items():
    if not isinstance(answer, np.ndarray):
      raise RuntimeError(f"the expert could not plan:\n{answer.error}")
    chunks.update(zip(range(slot, len(snapshots), env.slots), answer))
  return np.stack([chunks[i] for i in range(len(snapshots))])


def episode_record(cell: Cell, trace: Trace, lesson: Lesson, *, memory_records: int, tick_s: float,
                   keep_latency: bool = False) -> EpisodeRecord:
  """Returns the record of an episode. Latencies are kept only where a decision was one robot's."""
  return EpisodeRecord(
      **dataclasses.asdict(cell), seed=trace.job.seed, index=trace.job.index, outcome=trace.outcome,
      failure_kind=lesson.failure_kind, steps=trace.ticks, decisions=len(trace.steps),
      corrected=lesson.corrected, records_added=lesson.records_added, memory_records=memory_records,
      latency_ms=trace.latency_ms if keep_latency else {}, deadline_misses=trace.deadline_misses,
      abstained=sum(step.used == 0 for step in trace.steps), error=trace.error,
      extra=_extra(trace, lesson, tick_s))


def _extra(trace: Trace, lesson: Lesson, tick_s: float) -> dict[str, Any]:
  """Returns what only some episodes have: less than full trust in the memory, a repetition without it, a rewind,
  attempts after it, help.

  `again` are the decisions of the repetition, of each attempt and of the take-over; `helped_s` is how long somebody
  else acted in the policy's own episode, `watched_s` how long somebody watched or acted, and `looks` how often they
  began to. `partial` is whether the task was partly done, where the world tells; `stages` how many tasks
  of an episode that asks for several the policy did before anybody helped.
  """
  values = {"trust": trace.job.trust, "rewind": lesson.rewind, "attempts": lesson.attempts, "again": list(lesson.again),
            ALONE: lesson.alone, "helped_s": round(trace.helped_ticks * tick_s, 3),
            "watched_s": round(lesson.watched_s, 3), "looks": lesson.looks, PARTIAL: trace.partial,
            STAGES: trace.stages}
  usual = {"trust": 1.0, "rewind": None, "attempts": 0, "again": [], ALONE: "", "helped_s": 0.0, "watched_s": 0.0,
           "looks": 0, PARTIAL: None, STAGES: None}
  return {name: value for name, value in values.items() if value != usual[name]}
