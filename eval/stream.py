"""A stream of episodes in which the memory learns: the policy works, an expert takes over when it fails."""

import collections
import dataclasses
from collections.abc import Container, Iterator, Sequence
from typing import Any

import numpy as np

from eval.records import EpisodeRecord
from pi0rag_jax.learning.online import Lesson, OnlineConfig, OnlineLearner
from pi0rag_jax.learning.trust import Trust
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.steering.agent import Agent
from pi0rag_jax.worlds import rollout
from pi0rag_jax.worlds.batch import BatchEnv, Plan
from pi0rag_jax.worlds.episode import Job, Trace


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


def run(env: BatchEnv, agent: Agent, cell: Cell, jobs: Sequence[Job], config: OnlineConfig, *,
        corrected: int, logged: Sequence[EpisodeRecord] = ()) -> Iterator[EpisodeRecord]:
  """Yields a record per stream episode, once what it taught is durable in the agent's memory.

  Args:
    jobs: the episodes still to run, in order.
    corrected: take-overs spent before, when a stream is resumed.
    logged: the episodes of a stream that is resumed.
  """
  memory = agent.memory
  assert memory is not None, "a stream teaches a memory: give the agent one"
  learner = OnlineLearner(memory, agent.policy.space, task=cell.task, condition=cell.condition, config=config,
                          corrected=corrected, expert_plan=lambda snapshots: expert_plans(env, snapshots))
  trust = Trust(config.trust)
  for record in logged:
    if not record.crashed:
      trust.observe(steered=record.extra.get("trust", 1.0) > 0, success=record.outcome == "success")
  queue = collections.deque(jobs)
  for trace in rollout.run(env, agent, queue, launch=trust.launch):
    lesson = learner.learn(trace)
    if lesson.next_job is not None:
      queue.appendleft(lesson.next_job)
    elif lesson.trace is not None:
      if lesson.trace.outcome != "crashed":
        trust.observe(steered=lesson.trace.job.trust > 0, success=lesson.trace.outcome == "success")
      yield episode_record(cell, lesson.trace, lesson, memory_records=len(memory))


def cell_of(record: EpisodeRecord) -> Cell:
  """Returns the cell that an episode belongs to."""
  return Cell(**{field.name: getattr(record, field.name) for field in dataclasses.fields(Cell)})


def forget_unlogged(memory: Memory, seeds: Container[int], logged_seeds: Container[int]) -> None:
  """Removes what episodes of a stream taught that never reached the log: a resumed stream runs them again.

  Args:
    seeds: of the stream; a memory that began as a copy has records of others too.
  """
  memory.remove([identity for identity, record in memory.records()
                 if (seed := record.provenance.get("seed", -1)) in seeds and seed not in logged_seeds])


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


def episode_record(cell: Cell, trace: Trace, lesson: Lesson, *, memory_records: int,
                   keep_latency: bool = False) -> EpisodeRecord:
  """Returns the record of an episode. Latencies are kept only where a decision was one robot's."""
  return EpisodeRecord(
      **dataclasses.asdict(cell), seed=trace.job.seed, index=trace.job.index, outcome=trace.outcome,
      failure_kind=lesson.failure_kind, steps=trace.ticks, decisions=len(trace.steps),
      corrected=lesson.corrected, records_added=lesson.records_added, memory_records=memory_records,
      latency_ms=trace.latency_ms if keep_latency else {}, deadline_misses=trace.deadline_misses,
      abstained=sum(step.used == 0 for step in trace.steps), error=trace.error,
      extra=_extra(trace, lesson))


def _extra(trace: Trace, lesson: Lesson) -> dict[str, Any]:
  """Returns what only some episodes have: less than full trust in the memory, a rewind, attempts after it."""
  values = {"trust": trace.job.trust, "rewind": lesson.rewind, "attempts": lesson.attempts}
  usual = {"trust": 1.0, "rewind": None, "attempts": 0}
  return {name: value for name, value in values.items() if value != usual[name]}
