"""Carries out the tasks of a sweep, with policies and worlds that are loaded once.

What it does is told in results, in their order: whoever takes one has it on disk before the next one is asked for. It
writes memories, fits and clips itself, and never the log.
"""

import collections
import contextlib
import dataclasses
import pathlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from eval import checks, clips, plan, stopping, stream, tasks
from eval.fits import Fits
from eval.plan import Evaluate, Fork, Learn, Merge, Method, Place, Pool, Stream
from eval.records import EpisodeRecord
from eval.summary import anytime_words
from eval.tasks import Filming, Fitting, Running, Task
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning.asking import ASKED
from pi0rag_jax.learning.detectors import detect
from pi0rag_jax.learning.online import Lesson, OnlineConfig
from pi0rag_jax.memory import anew, backup
from pi0rag_jax.memory.index import MAX_CAPACITY
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.store import Batch
from pi0rag_jax.policy import compiling, directory
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.steering import rules
from pi0rag_jax.steering.agent import Agent
from pi0rag_jax.steering.fit import UNFITTED, Fit
from pi0rag_jax.typing import Config
from pi0rag_jax.worlds import rollout
from pi0rag_jax.worlds.batch import BatchEnv, Start
from pi0rag_jax.worlds.episode import Job, Trace
from pi0rag_jax.worlds.journal import Journal
from pi0rag_jax.worlds.replay import Executed

JOURNAL_NAME = "decisions.jsonl"  # in a memory's folder while it learns
# How long a process that was killed, on another machine say, may take to let go of a memory.
LOCK_TIMEOUT_S = 30.0


@dataclasses.dataclass(frozen=True)
class Assignment:
  """A task, and what there is of it."""

  task: Task
  records: Sequence[EpisodeRecord] = ()  # of the cells that it needs to know
  seeds: Sequence[int] = ()  # to be filmed


@dataclasses.dataclass(frozen=True)
class Ended:
  """An episode that belongs into the log."""

  record: EpisodeRecord
  executed: Executed | None = None  # of a stream's


@dataclasses.dataclass(frozen=True)
class Size:
  """What a memory occupies, store and index together."""

  source: str
  size: int


@dataclasses.dataclass(frozen=True)
class Note:
  """Something that people should read."""

  text: str


Result = Ended | Size | Note


@dataclasses.dataclass(frozen=True)
class Make:
  """Makes a worker, here or in another process."""

  config: Config
  out: pathlib.Path
  processes: int  # that simulate

  def __call__(self) -> "Worker":
    compiling.keep_programs()
    return Worker(self.config, self.out, self.processes)


class Worker:
  """Carries out one task at a time; environments are kept while the place stays the same."""

  def __init__(self, config: Config, out: pathlib.Path, processes: int):
    self._config, self._out, self._processes = config, out, processes
    self._policy = directory.load(
      config.policy, checkpoint=config.checkpoint or None, key_name=config.memory.key_name, start=config.start or None,
      **_decided(config))
    checks.check_methods(config, self._policy)
    self._loop = plan.loop(config, self._policy.spec)
    self._others: dict[str, Policy] = {}
    self._envs = contextlib.ExitStack()
    self._here: tuple[Place, BatchEnv] | None = None
    self._fits = Fits(out, self._policy, self._new_env)

  def __call__(self, assignment: Assignment) -> Iterator[Result]:
    """Does what is left of a task, and yields what came of it."""
    match task := assignment.task:
      case Learn():
        yield from self._learn(task, assignment.records)
      case Fork():
        self._fork(task)
      case Merge():
        yield from self._merge(task)
      case Fitting():
        with self._agent_of(task.step, task.method):
          pass
      case Filming():
        self._film(task, assignment.seeds)
      case Running(timed=True):
        yield from self._time_decisions(task, assignment.records)
      case Running():
        yield from self._run(task, assignment.records)

  def close(self) -> None:
    """Ends the environments."""
    self._envs.close()

  def _env(self, place: Place) -> BatchEnv:
    """Returns the environments of a place; those of the last place are closed."""
    if self._here is None or self._here[0] != place:
      self._envs.close()
      self._here = place, self._envs.enter_context(self._new_env(place))
    return self._here[1]

  def _new_env(self, place: Place, slots: int | None = None) -> BatchEnv:
    return BatchEnv(checks.world_config(self._config, self._policy.spec, place), slots=slots or self._config.slots,
                    processes=min(self._processes, slots or self._processes))

  def _learn(self, step: Learn, records: Sequence[EpisodeRecord]) -> Iterator[Result]:
    """Runs what is left of the stream up to an episode; the memory is durable after each."""
    c, source = self._config.stream, step.stream
    cell, folder = tasks.learning_cell(self._config, source), memory_dir(self._out, source)
    seeds = source.seeds[: step.until]
    done = [record for record in records if stream.cell_of(record) == cell and record.seed in seeds]
    journal_path = folder / JOURNAL_NAME
    if len(done) == step.until:  # killed between the last episode and this
      if folder.exists():
        with self._open_memory(source, read_only=False) as memory:
          yield Size(source.name, memory.memory_bytes())
      journal_path.unlink(missing_ok=True)
      return
    if done and not folder.exists():
      raise Pi0RagError(f"{len(done)} episodes of stream '{source.name}' are logged, but {folder}, which they taught, "
                        "is missing: bring it back, or use another --out")
    rule, how = self._rule(c.steering), checks.online_config(self._config, source.place.task)
    with self._open_memory(source, read_only=False) as memory, Journal(journal_path) as journal:
      part = stream.take_up(memory, journal, source.name, seeds, step.begin, done, asks=how.asking.when == ASKED)
      if not part.exact and done:
        yield Note(f"{source.name}: what was under way is not known (a version before this one began the stream, or it "
                   "was changed): those episodes begin anew, not exactly as they would have run")
      learner = self._agent(self._policy, memory, rule)
      elsewhere = [record for record in records if record.stream != source.name]
      yield from (Ended(*ended) for ended in stream.run(
        self._env(source.place), learner, cell, part, how, journal,
        time_limit=plan.family(self._config).time_limit(source.place.task), steered=c.acting == "memory",
        loop=self._loop, elsewhere=elsewhere))
      learner.close()
      yield Size(source.name, memory.memory_bytes())
    journal_path.unlink()

  def _fork(self, step: Fork) -> None:
    """Copies a memory, once: what the other stream makes of it afterwards stays."""
    if not memory_dir(self._out, step.target).exists():
      backup.backup(memory_dir(self._out, step.source), memory_dir(self._out, step.target))

  def _merge(self, step: Merge) -> Iterator[Result]:
    """Copies the records of memories into one, once and as a whole."""
    place = memory_dir(self._out, step.pool)
    sources = [memory_dir(self._out, source) for source in step.pool.streams]
    if not place.exists():
      parts = [anew.read(source) for source in sources]
      # Without the streams' tokens, which places may share: nobody learns here.
      anew.write(place, parts[0].header, [Batch(None, (), batch.records) for part in parts for batch in part.batches()])
    with Memory.load(place, capacity=MAX_CAPACITY) as memory:
      yield Size(step.pool.name, memory.memory_bytes())

  def _run(self, task: Running, records: Sequence[EpisodeRecord]) -> Iterator[Result]:
    """Runs a policy on evaluation seeds, with the memory frozen."""
    jobs, done = self._missing(task, records)
    env = self._env(task.step.place)
    if not task.controls:
      yield from (Ended(record) for record in self._ran(env, task.step, task.method, jobs))
      return
    controls = [[record for record in records if stream.cell_of(record) == cell] for cell in task.controls]
    yield from self._run_until_decided(task, controls, jobs, {record.seed: record for record in done}, env)

  def _run_until_decided(self, task: Running, controls, jobs: list[Job], done: dict[int, EpisodeRecord], env: BatchEnv
                         ) -> Iterator[Result]:
    """Runs a policy on the evaluation seeds in their order until the test against each control has decided."""
    decision, ended = stopping.Decision(controls), []
    with contextlib.closing(self._ran(env, task.step, task.method, jobs)) as new:
      for record in stopping.in_order(task.seeds, done, new):
        ended.append(record)
        if record.seed not in done:
          yield Ended(record)
        if decision.add(record) and len(ended) < len(task.seeds):
          if len(ended) > len(done):
            words = anytime_words([r.policy_succeeded for r in ended if not r.crashed])
            yield Note(f"{tasks.name(task)}: stopped early after {len(ended)} of {len(task.seeds)} episodes, {words}")
          return

  def _time_decisions(self, task: Running, records: Sequence[EpisodeRecord]) -> Iterator[Result]:
    """Runs seeds of a policy one robot at a time: their latencies are those of one decision."""
    jobs, _ = self._missing(task, records)
    with self._new_env(task.step.place, slots=1) as env:
      self._warm_up(env, task.step, task.method)
      yield from (Ended(record) for record in self._ran(env, task.step, task.method, jobs, keep_latency=True))

  def _film(self, task: Filming, seeds: Sequence[int]) -> None:
    """Films some seeds with and without memory, beside the results, so that a finished sweep films nothing again."""
    env, place = self._env(task.step.place), task.step.place
    without, with_memory = (self._traces(env, task.step, method, seeds) for method in task.methods)
    filmed = clips.film(env, seeds, without, with_memory, task=place.task, condition=place.condition)
    clips.save(clips_path(self._out, task.step), seeds, filmed)

  def _traces(self, env: BatchEnv, step: Evaluate, method: Method, seeds: Sequence[int]) -> dict[int, Trace]:
    jobs = collections.deque(Job(seed, index) for index, seed in enumerate(seeds))
    with self._agent_of(step, method) as agent:
      return {t.job.seed: t for t in rollout.run(env, agent, jobs, start=method.start, loop=self._loop)}

  def _ran(self, env: BatchEnv, step: Evaluate, method: Method, jobs: list[Job], *, keep_latency: bool = False
           ) -> Generator[EpisodeRecord]:
    """Yields the records of a frozen policy's episodes as they end."""
    if not jobs:
      return
    cell = tasks.cell(step, method)
    detectors = checks.online_config(self._config, step.place.task).detectors
    with self._agent_of(step, method) as agent:
      records = 0 if agent.memory is None else len(agent.memory)
      for trace in rollout.run(env, agent, collections.deque(jobs), start=method.start, loop=self._loop):
        failed = trace.outcome == "failure"
        kind = detect(trace.sensors, detectors, timed_out=True).kind if failed else ""
        yield stream.episode_record(cell, trace, Lesson(failure_kind=kind), memory_records=records,
                                    tick_s=1 / self._policy.spec.control_hz, keep_latency=keep_latency)

  def _missing(self, task: Running, records: Sequence[EpisodeRecord]) -> tuple[list[Job], list[EpisodeRecord]]:
    """Returns (jobs of the seeds that the log does not have, records of those that it has)."""
    cell, first = tasks.cell(task.step, task.method), self._config.evaluation.first_seed
    done = {record.seed: record for record in records if stream.cell_of(record) == cell and record.seed in task.seeds}
    return [Job(seed, seed - first) for seed in task.seeds if seed not in done], list(done.values())

  @contextlib.contextmanager
  def _agent_of(self, step: Evaluate, method: Method):
    """Yields the agent of a method; its memory, if it has one, is only read."""
    if method.steering is None:
      yield Agent(self._decides(method))
      return
    if step.stream is None:
      raise Pi0RagError(f"policy '{method.name}' steers with '{method.steering}', but no stream taught it")
    rule = self._rule(method.steering)
    with self._open_memory(step.stream, read_only=True) as memory:
      if rules.is_fitted(rule) and not any(memory.counts()[kind] for kind in rule.kinds):
        yield Agent(self._decides(method))  # nothing to be fitted to: nobody would have a say
        return
      agent = self._agent(self._decides(method), memory, rule, self._fits.of(step.stream, step.after, rule, memory))
      try:
        yield agent
      finally:
        agent.close()

  def _decides(self, method: Method) -> Policy:
    """Returns the policy of a method, at its pace."""
    policy = self._other(method.policy) if method.policy else self._policy
    return policy if method.execute_steps is None else policy.executing(method.execute_steps)

  def _other(self, policy: str) -> Policy:
    """Returns a policy that is not the sweep's. Errors: Pi0RagError where it sees or does something else."""
    if policy not in self._others:
      other = directory.load(policy, **_decided(self._config))
      mine, its = self._policy.spec, other.spec
      if (its.image_size, its.renderer, its.horizon) != (mine.image_size, mine.renderer, mine.horizon):
        raise Pi0RagError(f"policy '{policy}' sees {its.image_size} pixels of '{its.renderer}' and plans {its.horizon} "
                          f"actions, the sweep's {mine.image_size}, '{mine.renderer}' and {mine.horizon}: they cannot "
                          "meet the same worlds")
      self._others[policy] = other
    return self._others[policy]

  def _rule(self, name: str) -> rules.SteeringConfig:
    """Returns a way of steering in which records are silenced that break what the sweep promises not to."""
    trust = OnlineConfig.from_dict({"trust": self._config.stream.learning.trust.to_dict()}).trust
    return rules.preset(name, silenced_at=trust.silenced_at, harmless=trust.broken_max) if trust.promises else (
      rules.preset(name))

  def _agent(self, policy: Policy, memory: Memory, rule: rules.SteeringConfig, fit: Fit = UNFITTED) -> Agent:
    c = self._config.memory
    return Agent(policy, memory, rule, feeding=c.feeding, deadline_ms=c.deadline_ms or None, fit=fit)

  def _open_memory(self, source: Stream | Pool, *, read_only: bool) -> Memory:
    return Memory.open(memory_dir(self._out, source), **self._policy.memory_header(),
                       capacity=self._config.memory.capacity, create=not read_only, read_only=read_only,
                       lock_timeout_s=LOCK_TIMEOUT_S)

  def _warm_up(self, env: BatchEnv, step: Evaluate, method: Method) -> None:
    """Compiles a method for a batch of one, so that no latency holds a compilation."""
    moment = env.run({0: Start(step.seeds[0])})[0]
    with self._agent_of(step, method) as agent:
      agent.compile(moment.observation)


def memory_dir(out: pathlib.Path, source: Stream | Pool) -> pathlib.Path:
  """Returns the folder of a stream's or a pool's memory."""
  return out / "memory" / source.directory


def clips_path(out: pathlib.Path, step: Evaluate) -> pathlib.Path:
  """Returns the file of a place's clips."""
  assert step.stream is not None
  return out / "clips" / f"{step.stream.directory}.npz"


def _decided(config: Config) -> dict[str, Any]:
  """Returns how a configuration's policies decide, as `directory.load` takes it."""
  return {name: config.get(name) or None for name in ("execute_steps", "denoising_steps", "weights")}
