"""Episodes, many at a time: one policy call decides for every environment that waits for a decision.

The driver knows nothing of learning or of records: it takes jobs from a queue, which its caller may extend
while it runs (a take-over after a failure, say), and yields each episode's trace as it ends.
"""

import collections
import dataclasses
from collections.abc import Iterator

import numpy as np

from pi0rag_jax.learning.trace import Job, Step, Trace
from pi0rag_jax.policy.rag_policy import Prediction, SteeredPolicy
from pi0rag_jax.sim.batch import Advance, BatchEnv, Follow, Moment, Rewind, Start


@dataclasses.dataclass
class _Running:
  """An episode that occupies a slot."""

  trace: Trace
  noise: np.random.Generator
  answer: Moment | None = None  # the environment's last one

  @property
  def moment(self) -> Moment:
    """The world at its next decision."""
    assert self.answer is not None, "an episode decides only once its start was answered"
    return self.answer


def run(env: BatchEnv, policy: SteeredPolicy, jobs: collections.deque[Job], *,
        stochastic: bool) -> Iterator[Trace]:
  """Yields the trace of every job, in the order in which the episodes end.

  Args:
    jobs: taken from the left; what is put there while this runs is run too.
    stochastic: denoising starts at a Gaussian draw of the job's seed, else at zero.
  """
  slots: dict[int, _Running] = {}
  while jobs or slots:
    commands = {}
    for slot in range(env.slots):
      if slot not in slots and jobs:
        slots[slot] = _Running(Trace(job := jobs.popleft()), np.random.default_rng([job.seed, 0]))
        commands[slot] = Start(job.seed) if job.rewind is None else Rewind(job.rewind)
    deciding = [slot for slot in slots if slot not in commands]
    commands.update(_decide(env, policy, slots, deciding, stochastic))
    for slot, moment in env.run(commands).items():
      if _take(slots[slot], moment):
        yield slots.pop(slot).trace


def _decide(env: BatchEnv, policy: SteeredPolicy, slots: dict[int, _Running], deciding: list[int],
            stochastic: bool) -> dict[int, Advance | Follow]:
  """Returns what each deciding slot executes, and books the decision in its trace."""
  if not deciding:
    return {}
  moments = [slots[slot].moment for slot in deciding]
  noise = None
  if stochastic:
    noise = np.stack([slots[slot].noise.standard_normal(policy.policy.noise_shape) for slot in deciding])
  prediction = policy.infer([m.observation for m in moments], noise)
  count = policy.policy.spec.execute_steps
  commands = {}
  for row, slot in enumerate(deciding):
    _book(slots[slot], prediction, row)
    by_expert = slots[slot].trace.job.by_expert
    commands[slot] = Follow(count) if by_expert else Advance(prediction.actions_BTA[row, :count])
  return commands


def _book(running: _Running, prediction: Prediction, row: int) -> None:
  trace, moment = running.trace, running.moment
  trace.prompt = moment.observation["prompt"]
  trace.steps.append(Step(moment.ticks, moment.snapshot, prediction.key_BE[row], prediction.base_BTA[row],
                          prediction.actions_BTA[row], int(prediction.used_B[row]), prediction.ids_BK[row]))
  for stage, latency_ms in prediction.latency_ms.items():
    trace.latency_ms.setdefault(stage, []).append(latency_ms)
  trace.deadline_misses += prediction.missed_deadline


def _take(running: _Running, answer) -> bool:
  """Books what a slot's environment answered; returns whether the episode is over."""
  trace = running.trace
  if not isinstance(answer, Moment):
    raise TypeError(f"an environment answered {type(answer).__name__} to an episode's command")
  if answer.plan_TA is not None:  # the expert acted: what it did is what was executed
    trace.steps[-1] = dataclasses.replace(trace.steps[-1], actions_TA=answer.plan_TA)
  trace.error = answer.error or _not_finite(answer)
  trace.sensors.extend(answer.sensors)
  trace.ticks = answer.ticks
  running.answer = answer
  if trace.error:
    trace.outcome = "crashed"
  elif answer.done:
    trace.outcome = "success" if answer.success else "failure"
  return bool(trace.outcome)


def _not_finite(moment: Moment) -> str:
  """Returns what is wrong with an observation that no policy should see, or ''."""
  if moment.observation and not np.isfinite(moment.observation["state"]).all():
    return f"observation at tick {moment.ticks} has NaN or infinity in its state"
  return ""
