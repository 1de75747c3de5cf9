"""Episodes, many at a time: one policy call decides for every environment that waits for a decision.

The driver knows nothing of learning or of records: it takes jobs from a queue, which its caller may extend
while it runs (a take-over after a failure, say), and yields each episode's trace as it ends.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator

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


def run(env: BatchEnv, policy: SteeredPolicy, jobs: collections.deque[Job], *, stochastic: bool,
        launch: Callable[[Job], Job] = lambda job: job, keep_observations: bool = False) -> Iterator[Trace]:
  """Yields the trace of every job, in the order in which the episodes end.

  Args:
    jobs: taken from the left; what is put there while this runs is run too.
    stochastic: denoising starts at a Gaussian draw of the job's seed, else at zero; attempts always have a draw.
    launch: has the last word on a job as it begins.
    keep_observations: every step carries what the policy saw, pictures and all.
  """
  slots: dict[int, _Running] = {}
  while jobs or slots:
    commands = {}
    for slot in range(env.slots):
      if slot not in slots and jobs:
        job = launch(jobs.popleft())
        slots[slot] = _Running(Trace(job), np.random.default_rng([job.seed, job.attempt]))
        commands[slot] = Start(job.seed) if job.rewind is None else Rewind(job.rewind)
    deciding = [slot for slot in slots if slot not in commands]
    commands.update(_decide(env, policy, slots, deciding, stochastic))
    if keep_observations:
      _keep_observations(slots[slot] for slot in deciding)
    for slot, moment in env.run(commands).items():
      if _take(slots[slot], moment):
        yield slots.pop(slot).trace


def _decide(env: BatchEnv, policy: SteeredPolicy, slots: dict[int, _Running], deciding: list[int],
            stochastic: bool) -> dict[int, Advance | Follow]:
  """Returns what each deciding slot executes, and books the decision in its trace."""
  if not deciding:
    return {}
  running = [slots[slot] for slot in deciding]
  observations, noise = [r.moment.observation for r in running], _noise(policy, running, stochastic)
  prediction = policy.infer(observations, noise, trust_B=np.array([r.trace.job.trust for r in running], np.float32))
  base_BTA = _own_chunks(policy, running, prediction)
  count = policy.policy.spec.execute_steps
  commands = {}
  for row, (slot, one) in enumerate(zip(deciding, running)):
    _book(one, prediction, row, base_BTA[row])
    commands[slot] = Follow(count) if one.trace.job.by_expert else Advance(one.trace.steps[-1].actions_TA[:count])
  return commands


def _noise(policy: SteeredPolicy, running: list[_Running], stochastic: bool) -> np.ndarray | None:
  """Returns where each row's flow starts, zero where nothing is drawn; None where nothing is drawn at all."""
  drawn = [stochastic or r.trace.job.attempt > 0 for r in running]
  if not any(drawn):
    return None
  shape = policy.policy.noise_shape
  return np.stack([r.noise.standard_normal(shape) if draw else np.zeros(shape) for r, draw in zip(running, drawn)])


def _own_chunks(policy: SteeredPolicy, running: list[_Running], prediction: Prediction) -> np.ndarray:
  """Returns the policy's own chunks float32[B, T, A]: an attempt's noise is none of what a record calls its base."""
  rows = [row for row, r in enumerate(running) if r.trace.job.attempt > 0]
  if not rows:
    return prediction.base_BTA
  base_BTA = np.array(prediction.base_BTA)
  encoded = policy.policy.encode([running[row].moment.observation for row in rows])
  base_BTA[rows] = np.asarray(policy.policy.denoise(encoded, None))[: len(rows)]
  return base_BTA


def _book(running: _Running, prediction: Prediction, row: int, base_TA: np.ndarray) -> None:
  trace, moment = running.trace, running.moment
  trace.prompt = moment.observation["prompt"]
  trace.steps.append(Step(moment.ticks, moment.snapshot, prediction.key_BE[row], base_TA, prediction.actions_BTA[row],
                          int(prediction.used_B[row]), prediction.ids_BK[row], prediction.weight_BK[row]))
  for stage, latency_ms in prediction.latency_ms.items():
    trace.latency_ms.setdefault(stage, []).append(latency_ms)
  trace.deadline_misses += prediction.missed_deadline


def _keep_observations(deciding: Iterable[_Running]) -> None:
  """Books what each saw when it decided."""
  for running in deciding:
    running.trace.steps[-1] = dataclasses.replace(running.trace.steps[-1], observation=running.moment.observation)


def _take(running: _Running, answer) -> bool:
  """Books what a slot's environment answered; returns whether the episode is over."""
  trace = running.trace
  if not isinstance(answer, Moment):
    raise TypeError(f"an environment answered {type(answer).__name__} to an episode's command")
  if answer.plan_TA is not None:  # the expert acted: what it did is what was executed
    trace.steps[-1] = dataclasses.replace(trace.steps[-1], actions_TA=answer.plan_TA)
  trace.error = answer.error or _not_finite(answer)
  trace.sensors.extend(answer.sensors)
  trace.truths.extend(answer.truths)
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
