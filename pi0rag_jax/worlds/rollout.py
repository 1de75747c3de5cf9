"""Episodes, many at a time: one policy call decides for a group of environments while the others move.

The driver knows nothing of learning or of records: it takes jobs from a queue, which its caller may extend
while it runs (a take-over after a failure, say), and yields each episode's trace as it ends. Groups take turns in a
fixed order and a call always has a whole group's rows, so that nothing depends on which process was faster, and the
arithmetic of an episode not on who is beside it. What happens when thus follows from how many decisions each job takes:
jobs that ran before keep their slots that long without running, and the others meet what they met then.
"""

import collections
import dataclasses
from collections.abc import Callable, Container, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from pi0rag_jax.data.validation import EXPERT, POLICY
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy.policy import Carry, Policy
from pi0rag_jax.policy.realtime import Overlap
from pi0rag_jax.policy.spec import NEW, ZERO, PolicySpec
from pi0rag_jax.robots.registry import make_robot
from pi0rag_jax.steering.agent import Agent, Decision
from pi0rag_jax.worlds import registry
from pi0rag_jax.worlds.batch import Advance, BatchEnv, Moment, Rewind, Start
from pi0rag_jax.worlds.episode import Job, Step, Trace
from pi0rag_jax.worlds.journal import Journal
from pi0rag_jax.worlds.world import NOMINAL, Family, WorldConfig

# Rows of a policy call: the shipped policies take as long for each row of 8 as of 32, and of a small group none waits
# long for its turn.
GROUP = 8
# Where an episode's next decision starts to denoise: a start of PolicySpec, or what a function says of the episode so
# far. None is the policy's own start.
FlowStart = str | Callable[[Trace], np.ndarray] | None
# Whether the expert acts: of an episode's next step, as the agent would have it, and the expert's plan float32[T, A].
Watch = Callable[[Step, np.ndarray], bool]


@dataclasses.dataclass(frozen=True)
class Loop:
  """How a robot's loop waits for its policy."""

  delay: int = 0  # ticks from an observation until its chunk is there; the one before is executed meanwhile
  real_time: bool = False  # a chunk goes on from that one, see `policy.realtime`

  def check(self, spec: PolicySpec) -> None:
    """Raises Pi0RagError where a policy cannot keep up with the loop."""
    count, horizon = spec.execute_steps, spec.horizon
    if not 0 <= self.delay <= count:
      raise Pi0RagError(f"a chunk is there after {self.delay} ticks, and after {count} the next one is asked for; "
                        f"allowed: a delay of 0 to {count}, or more execute_steps")
    if self.delay + count > horizon:
      raise Pi0RagError(f"after {count} actions of a chunk of {horizon} a delay of {self.delay} ticks is longer than "
                        "what is left: fewer execute_steps are needed")


AT_ONCE = Loop()


@dataclasses.dataclass
class _Running:
  """An episode that occupies a slot."""

  trace: Trace
  noise: np.random.Generator
  watch: Watch | None = None
  answer: Moment | None = None  # the environment's last one
  row: int | None = None  # of its group's last decision; None before its first one
  turns: int = 0  # since it began

  @property
  def moment(self) -> Moment:
    """The world at its next decision."""
    assert self.answer is not None, "an episode decides only once its start was answered"
    return self.answer

  @property
  def told(self) -> str:
    """What the robot is asked to do at its next decision."""
    return str(self.moment.observation.get("prompt", ""))

  def over(self, answers: dict[int, Moment], slot: int) -> bool:
    """Books a turn; returns whether it was the last one."""
    self.turns += 1
    past = self.trace.job.past
    return _take(self, answers[slot]) if past is None else self.turns > past


@dataclasses.dataclass
class _Group:
  """Slots that decide together."""

  slots: range
  carry: Carry  # of the group's last decision
  running: dict[int, _Running] = dataclasses.field(default_factory=dict)
  answers: Callable[[], dict[int, Moment]] = dict  # waits for what its environments answer

  def finished(self) -> Iterator[Trace]:
    """Yields the episodes that ended since the group's last turn."""
    answers = self.answers()
    for slot in sorted(self.running):  # in the same order however many processes there are
      if self.running[slot].over(answers, slot):
        yield self.running.pop(slot).trace

  def started(self, jobs: collections.deque[Job], launch: Callable[[Job], Job], watch: Callable[[Job], Watch | None]
              ) -> dict[int, Start | Rewind]:
    """Returns what the slots that are free begin."""
    commands = {}
    for slot in self.slots:
      if slot not in self.running and jobs:
        job = launch(jobs.popleft())
        watched = _always if job.by_expert else watch(job)
        self.running[slot] = _Running(Trace(job), np.random.default_rng([job.seed, job.attempt]), watched)
        if job.past is None:
          plan = watched is not None
          commands[slot] = Start(job.seed, plan) if job.rewind is None else Rewind(job.rewind, plan)
    return commands

  def deciding(self, begun: Container[int]) -> dict[int, _Running]:
    """Returns the episodes that wait for a decision."""
    return {slot: one for slot, one in self.running.items() if slot not in begun and one.trace.job.past is None}


def world_config(spec: PolicySpec, task: Any, condition: Any = NOMINAL, *, world: str = "panda",
                 options: Mapping[str, Any] = MappingProxyType({}), witness: bool = False) -> WorldConfig:
  """Returns the worlds in which a policy can run, of a family and its options; see WorldConfig.

  Errors: Pi0RagError for a world whose package is missing, a task or condition that it lacks, a policy of another
    robot, one that was not trained on the task, and one of pictures that this machine cannot make.
  """
  robot = make_robot(spec.data, spec.model.family).name
  config = WorldConfig(task, condition, world, dict(options), spec.image_size[0], spec.renderer, spec.horizon, witness)
  family = registry.family(world, options)
  if robot != family.robot:
    raise Pi0RagError(f"policy '{spec.name}' is for the robot '{robot}', that of the world '{world}' is "
                      f"'{family.robot}'")
  registry.check(family, task, condition)
  if not _knows(spec, family, config.task_name):
    raise Pi0RagError(f"policy '{spec.name}' was trained on {', '.join(spec.tasks)}, not on '{config.task_name}'")
  if family.renderers() and spec.renderer not in family.renderers():
    raise Pi0RagError(f"policy '{spec.name}' was trained on pictures of renderer '{spec.renderer}'; on this machine "
                      f"there are {', '.join(family.renderers())}")
  registry.require(config)
  return config


def _knows(spec: PolicySpec, family: Family, task: str) -> bool:
  """Returns whether a policy was trained on a task, or on any of which its chains may consist."""
  known = spec.tasks or family.tasks
  return task in known or (len(family.asks(task, 0)) > 1 and not set(known).isdisjoint(family.tasks))


def run(env: BatchEnv, agent: Agent, jobs: collections.deque[Job], *, start: FlowStart = None,
        launch: Callable[[Job], Job] = lambda job: job, watch: Callable[[Job], Watch | None] = lambda job: None,
        keep_observations: bool = False, journal: Journal | None = None, loop: Loop = AT_ONCE) -> Iterator[Trace]:
  """Yields the trace of every job, in the order in which the episodes end.

  What a policy carries between decisions begins anew with each job, also with one that rewinds.

  Args:
    jobs: taken from the left; what is put there while this runs is run too.
    start: see FlowStart. A new draw is the job's seed's own; attempts always have one.
    launch: has the last word on a job as it begins.
    watch: of a job that begins, who says at each of its decisions whether the expert acts; None where nobody does.
    keep_observations: every step carries what the policy saw, pictures and all.
    journal: keeps every decision; those that it has are not made again.
    loop: an episode's first chunk is waited for, and so is the first after a take-over.
  Errors: Pi0RagError for a loop that the policy cannot keep up with.
  """
  if loop != AT_ONCE:
    loop.check(agent.policy.spec)
  rows = group_size(env.slots)
  groups = [_Group(range(first, min(first + rows, env.slots)), agent.policy.start(rows))
            for first in range(0, env.slots, rows)]
  while jobs or any(group.running for group in groups):
    for group in groups:
      yield from group.finished()
      begun = group.started(jobs, launch, watch)
      deciding = group.deciding(begun)
      decided = _decide(agent, group, list(deciding.values()), rows, start, journal, keep_observations, loop)
      group.answers = env.submit(begun | dict(zip(deciding, decided)))


def group_size(slots: int) -> int:
  """Returns how many of so many slots decide together: a power of two, as a policy's batches are, and at most half of
  them, so that the processes have something to do meanwhile.
  """
  return min(GROUP, 1 << max(slots // 2, 1).bit_length() - 1)


def _decide(agent: Agent, group: _Group, running: list[_Running], rows: int, start: FlowStart,
            journal: Journal | None, keep_observations: bool, loop: Loop) -> list[Advance]:
  """Returns what each episode executes, and books the decision in its trace."""
  if not running:
    return []
  noise_BTX = _noise(agent.policy, start, running)
  known = [journal.recall(one.trace.job.seed) if journal is not None else None for one in running]
  steps = [step for step in known if step is not None]
  if len(steps) < len(known) or jax.tree.leaves(group.carry):
    asked = _ask(agent, group, running, rows, noise_BTX, loop)
    if journal is not None:
      journal.note({one.trace.job.seed: new for one, old, new in zip(running, known, asked) if old is None})
    steps = [old or new for old, new in zip(known, asked)]
  count = agent.policy.spec.execute_steps
  commands = []
  for row, (one, step) in enumerate(zip(running, steps)):
    one.row = row
    one.trace.prompt = one.told
    seen = one.moment.observation if keep_observations else None
    step = _late(step, one, loop)
    step = dataclasses.replace(step, snapshot=one.moment.snapshot, observation=seen, prompt=one.trace.prompt)
    step = _acted(step, one)
    first_help = one.trace.job.watched and step.by == EXPERT and not one.trace.helped
    one.trace.steps.append(step)
    commands.append(Advance(step.actions_TA[:count], plan=one.watch is not None, more_time=first_help))
  return commands


def _acted(step: Step, one: _Running) -> Step:
  """Returns a step with what is executed, and by whom."""
  if one.watch is None:
    return step
  plan_TA = one.moment.plan_TA
  assert plan_TA is not None, "who watches is told the expert's plan"
  step = dataclasses.replace(step, label_TA=plan_TA)
  return dataclasses.replace(step, actions_TA=plan_TA, by=EXPERT) if one.watch(step, plan_TA) else step


def _always(step: Step, plan_TA: np.ndarray) -> bool:
  del step, plan_TA
  return True


def _overlap(one: _Running, loop: Loop) -> Overlap | None:
  """Returns the chunk that is still being executed when an episode's next decision is made."""
  before = one.trace.steps[-1] if one.trace.steps else None
  if not loop.delay or before is None or before.by != POLICY:
    return None
  return Overlap(before.actions_TA, one.moment.ticks - before.tick, loop.delay)


def _late(step: Step, one: _Running, loop: Loop) -> Step:
  """Returns a step whose chunk begins with what was executed until it was there."""
  overlap = _overlap(one, loop)
  if overlap is None:
    return step
  actions_TA = step.actions_TA.copy()
  actions_TA[: overlap.delay] = overlap.chunk_TA[overlap.passed :][: overlap.delay]
  return dataclasses.replace(step, actions_TA=actions_TA)


def _ask(agent: Agent, group: _Group, running: list[_Running], rows: int, noise_BTX: np.ndarray | None, loop: Loop
         ) -> list[Step]:
  """Returns what the agent decides for each episode, without snapshots, and books its latencies."""
  # Always the same program: another one, of fewer rows, rounds otherwise, and must be compiled.
  padded = [*running, *running[-1:] * (rows - len(running))]
  observations, trust_B = [r.moment.observation for r in padded], [r.trace.job.trust for r in padded]
  carry = _carried(agent.policy, group.carry, padded)
  overlaps = {"overlaps": [_overlap(one, loop) for one in padded]} if loop.real_time else {}
  group.carry, decision = agent.decide(
    carry, observations, noise_BTX, trust_B=np.array(trust_B, np.float32), **overlaps)
  base_BTA = _own_chunks(agent.policy, carry, running, observations, decision)
  for one in running:
    for stage, latency_ms in decision.latency_ms.items():
      one.trace.latency_ms.setdefault(stage, []).append(latency_ms)
  return [Step(one.moment.ticks, None, decision.key_BE[row], base_BTA[row], decision.actions_BTA[row],
               int(decision.used_B[row]), decision.ids_BK[row], decision.weight_BK[row], decision.missed_deadline)
          for row, one in enumerate(running)]


def _carried(policy: Policy, carry: Carry, padded: list[_Running]) -> Carry:
  """Returns what the episodes carry, in their order now; those that begin, or are told something else, begin anew."""
  if not jax.tree.leaves(carry):
    return carry
  before_B = np.array([r.row or 0 for r in padded])
  anew_B = np.array([r.row is None or r.told != r.trace.prompt for r in padded])
  return policy.restart(jax.tree.map(lambda x: x[before_B], carry), anew_B)


def _noise(policy: Policy, start: FlowStart, running: list[_Running]) -> np.ndarray | None:
  """Returns where each row's flow starts; None where all start where the policy's own does."""
  if callable(start):
    return np.stack([start(r.trace) for r in running])
  start = start or policy.spec.start
  drawn = [start == NEW or r.trace.job.attempt > 0 for r in running]
  if not policy.noise_shape or (start == policy.spec.start and not any(drawn)):
    return None
  fixed_TX = np.zeros(policy.noise_shape) if start == ZERO else np.asarray(policy.start_of_flow(1))[0]
  return np.stack([r.noise.standard_normal(policy.noise_shape) if draw else fixed_TX
                   for r, draw in zip(running, drawn)])


def _own_chunks(policy: Policy, carry: Carry, running: list[_Running], observations: list[dict], decision: Decision
                ) -> np.ndarray:
  """Returns the policy's own chunks float32[B, T, A]: an attempt's noise is none of what a record calls its base."""
  rows = [row for row, r in enumerate(running) if r.trace.job.attempt > 0]
  if not rows or not policy.noise_shape or policy.spec.start == NEW:
    return decision.base_BTA
  base_BTA = np.array(decision.base_BTA)
  _, encoded = policy.encode(carry, policy.prepare(observations))
  base_BTA[rows] = np.asarray(policy.decode(encoded))[rows]
  return base_BTA


def _take(running: _Running, answer) -> bool:
  """Books what a slot's environment answered; returns whether the episode is over."""
  trace = running.trace
  if not isinstance(answer, Moment):
    raise TypeError(f"an environment answered {type(answer).__name__} to an episode's command")
  trace.error = answer.error or _not_finite(answer)
  trace.sensors.extend(answer.sensors)
  trace.truths.extend(answer.truths)
  trace.ticks, trace.partial = answer.ticks, answer.partial
  if not trace.helped:
    trace.stages = answer.stages
  running.answer = answer
  if trace.error:
    trace.outcome = "crashed"
  elif answer.done:
    trace.outcome = "success" if answer.success else "failure"
  return bool(trace.outcome)


def _not_finite(moment: Moment) -> str:
  """Returns what is wrong with an observation that no policy should see, or ''."""
  for name, leaf in _numbers(moment.observation):
    if not np.isfinite(leaf).all():
      return f"observation at tick {moment.ticks} has NaN or infinity in its {name}"
  return ""


def _numbers(observation: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, np.ndarray]]:
  """Yields (name, array) of an observation's real numbers."""
  for name, entry in observation.items():
    if isinstance(entry, Mapping):
      yield from _numbers(entry, f"{within}{name}.")
    elif isinstance(entry, (float, np.ndarray, np.generic)) and np.asarray(entry).dtype.kind == "f":
      yield within + name, np.asarray(entry)
