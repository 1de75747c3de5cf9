"""Episodes, many at a time: one policy call decides for a group of environments while the others move.

The driver knows nothing of learning or of records: it takes jobs from a queue, which its caller may extend
while it runs (a take-over after a failure, say), and yields each episode's trace as it ends. Groups take turns in a
fixed order and a call always has a whole group's rows, so that nothing depends on which process was faster, and the
arithmetic of an episode not on who is beside it.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np

from pi0rag_jax.steering.agent import Prediction, SteeredPolicy
from pi0rag_jax.worlds.batch import Advance, BatchEnv, Follow, Moment, Rewind, Start
from pi0rag_jax.worlds.episode import Job, Step, Trace

# Rows of a policy call: the shipped policies take as long for each row of 8 as of 32, and of a small group none waits
# long for its turn.
GROUP = 8


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


@dataclasses.dataclass
class _Group:
  """Slots that decide together."""

  slots: range
  running: dict[int, _Running] = dataclasses.field(default_factory=dict)
  answers: Callable[[], dict[int, Moment]] = dict  # waits for what its environments answer

  def finished(self) -> Iterator[Trace]:
    """Yields the episodes that ended since the group's last turn."""
    for slot, moment in sorted(self.answers().items()):  # in the same order however many processes there are
      if _take(self.running[slot], moment):
        yield self.running.pop(slot).trace

  def started(self, jobs: collections.deque[Job], launch: Callable[[Job], Job]) -> dict[int, Start | Rewind]:
    """Returns what the slots that are free begin."""
    commands = {}
    for slot in self.slots:
      if slot not in self.running and jobs:
        job = launch(jobs.popleft())
        self.running[slot] = _Running(Trace(job), np.random.default_rng([job.seed, job.attempt]))
        commands[slot] = Start(job.seed) if job.rewind is None else Rewind(job.rewind)
    return commands


def run(env: BatchEnv, policy: SteeredPolicy, jobs: collections.deque[Job], *, stochastic: bool,
        launch: Callable[[Job], Job] = lambda job: job, keep_observations: bool = False,
        start: Callable[[Trace], np.ndarray] | None = None) -> Iterator[Trace]:
  """Yields the trace of every job, in the order in which the episodes end.

  Args:
    jobs: taken from the left; what is put there while this runs is run too.
    stochastic: denoising starts at a Gaussian draw of the job's seed, else at zero; attempts always have a draw.
    launch: has the last word on a job as it begins.
    keep_observations: every step carries what the policy saw, pictures and all.
    start: says of an episode so far where its next decision starts to denoise, instead of zero or a draw.
  """
  noise = functools.partial(_noise, policy, stochastic) if start is None else functools.partial(_starts, start)
  rows = group_size(env.slots)
  groups = [_Group(range(first, min(first + rows, env.slots))) for first in range(0, env.slots, rows)]
  while jobs or any(group.running for group in groups):
    for group in groups:
      yield from group.finished()
      begun = group.started(jobs, launch)
      deciding = {slot: one for slot, one in group.running.items() if slot not in begun}
      decided = _decide(policy, list(deciding.values()), rows, noise, keep_observations)
      group.answers = env.submit(begun | dict(zip(deciding, decided)))


def group_size(slots: int) -> int:
  """Returns how many of so many slots decide together: a power of two, as a policy's batches are, and at most half of
  them, so that the processes have something to do meanwhile.
  """
  return min(GROUP, 1 << max(slots // 2, 1).bit_length() - 1)


def _decide(policy: SteeredPolicy, running: list[_Running], rows: int,
            noise: Callable[[list[_Running]], np.ndarray | None], keep_observations: bool) -> list[Advance | Follow]:
  """Returns what each episode executes, and books the decision in its trace."""
  if not running:
    return []
  # Always the same program: another one, of fewer rows, rounds otherwise, and must be compiled.
  padded = [*running, *running[-1:] * (rows - len(running))]
  observations, trust_B = [r.moment.observation for r in padded], [r.trace.job.trust for r in padded]
  prediction = policy.infer(observations, noise(running), trust_B=np.array(trust_B, np.float32))
  base_BTA = _own_chunks(policy, running, observations, prediction)
  count = policy.policy.spec.execute_steps
  commands = []
  for row, one in enumerate(running):
    _book(one, prediction, row, base_BTA[row], keep_observations)
    commands.append(Follow(count) if one.trace.job.by_expert else Advance(one.trace.steps[-1].actions_TA[:count]))
  return commands


def _starts(start: Callable[[Trace], np.ndarray], running: list[_Running]) -> np.ndarray:
  return np.stack([start(r.trace) for r in running])


def _noise(policy: SteeredPolicy, stochastic: bool, running: list[_Running]) -> np.ndarray | None:
  """Returns where each row's flow starts, zero where nothing is drawn; None where nothing is drawn at all."""
  drawn = [stochastic or r.trace.job.attempt > 0 for r in running]
  if not any(drawn):
    return None
  shape = policy.policy.noise_shape
  return np.stack([r.noise.standard_normal(shape) if draw else np.zeros(shape) for r, draw in zip(running, drawn)])


def _own_chunks(policy: SteeredPolicy, running: list[_Running], observations: list[dict], prediction: Prediction
                ) -> np.ndarray:
  """Returns the policy's own chunks float32[B, T, A]: an attempt's noise is none of what a record calls its base."""
  rows = [row for row, r in enumerate(running) if r.trace.job.attempt > 0]
  if not rows:
    return prediction.base_BTA
  base_BTA = np.array(prediction.base_BTA)
  base_BTA[rows] = np.asarray(policy.policy.denoise(policy.policy.encode(observations), None))[rows]
  return base_BTA


def _book(running: _Running, prediction: Prediction, row: int, base_TA: np.ndarray, keep_observation: bool) -> None:
  trace, moment = running.trace, running.moment
  trace.prompt = moment.observation["prompt"]
  trace.steps.append(Step(moment.ticks, moment.snapshot, prediction.key_BE[row], base_TA, prediction.actions_BTA[row],
                          int(prediction.used_B[row]), prediction.ids_BK[row], prediction.weight_BK[row],
                          moment.observation if keep_observation else None))
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
