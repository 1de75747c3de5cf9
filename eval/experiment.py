"""Carries out the steps of a sweep: streams in which the memory learns, and evaluations with it frozen."""

import collections
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Generator
from typing import Any

import numpy as np
from absl import logging
from rich.console import Console

from eval import checks, clips, fits, overall, plan, provenance, stopping, stream, summary
from eval.fits import EXECUTED_NAME, Fits
from eval.plan import Evaluate, Fork, Learn, Merge, Method, Place, Pool, Stream
from eval.progress import SweepProgress
from eval.records import EpisodeRecord, RecordLog
from eval.stream import Cell
from pi0rag_jax import files, schema
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning.asking import ASKED
from pi0rag_jax.learning.detectors import detect
from pi0rag_jax.learning.online import Lesson, OnlineConfig
from pi0rag_jax.memory import anew, backup
from pi0rag_jax.memory.index import MAX_CAPACITY
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.store import Batch
from pi0rag_jax.policy import directory
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.steering import rules
from pi0rag_jax.steering.agent import Agent
from pi0rag_jax.steering.fit import UNFITTED, Fit
from pi0rag_jax.typing import Config
from pi0rag_jax.worlds import rollout
from pi0rag_jax.worlds.batch import BatchEnv, Start
from pi0rag_jax.worlds.episode import Job, Trace
from pi0rag_jax.worlds.journal import Journal
from pi0rag_jax.worlds.replay import ExecutedLog
from pi0rag_jax.worlds.world import FILMS

RECORDS_NAME = "records.jsonl"
WALL_CLOCK_NAME = "wall_clock.json"
MEMORY_SIZES_NAME = "memory_bytes.json"  # by stream
JOURNAL_NAME = "decisions.jsonl"  # in a memory's folder while it learns
CONTROL, TREATMENT = "base_z0", "memory"  # what clips compare


def run(config: Config, out: pathlib.Path, console: Console, *, stop_early: bool = False) -> tuple[dict, list[dict]]:
  """Returns (summary, clips) of all steps; episodes that the log already has are not run again.

  Args:
    stop_early: a policy's evaluation ends once it is decided, see `stopping`.
  """
  started = time.monotonic()
  films = []
  steps = plan.steps(config)
  with SweepProgress(console) as progress, _Runner(config, out, progress, stop_early) as runner:
    for step in steps:
      films += runner.carry_out(step)
  facts = provenance.provenance(config, seeds=plan.evaluation_seeds(config), renderer=runner.policy.spec.renderer,
                                wall_clock_s=_total_wall_clock(out, time.monotonic() - started))
  planned: dict[overall.CellName, int] = {}
  for step in (step for step in steps if isinstance(step, Evaluate)):
    for method in step.methods:
      name = runner.name(step, method)
      planned[name] = max(len(step.seeds), planned.get(name, 0))
  return summary.summarize(runner.log.records, facts, memory_bytes=_sizes(out), fits=fits.facts(out, steps),
                          planned=planned, stop_early=stop_early), films


def _decided(config: Config) -> dict[str, Any]:
  """Returns how a configuration's policies decide, as `directory.load` takes it."""
  return {name: config.get(name) or None for name in ("execute_steps", "denoising_steps", "weights")}


class _Runner:
  """Carries out steps one after the other; environments are kept while the place stays the same."""

  def __init__(self, config: Config, out: pathlib.Path, progress: SweepProgress, stop_early: bool):
    self._config, self._out, self._progress, self._stop_early = config, out, progress, stop_early
    self.policy = directory.load(
      config.policy, checkpoint=config.checkpoint or None, key_name=config.memory.key_name, start=config.start or None,
      **_decided(config))
    checks.check_methods(config, self.policy)
    self._loop = plan.loop(config, self.policy)
    self._others: dict[str, Policy] = {}
    self.log = RecordLog(out / RECORDS_NAME)
    self._envs = contextlib.ExitStack()
    self._here: tuple[Place, BatchEnv] | None = None
    self._fits = Fits(out, self.policy, self._new_env)

  def __enter__(self) -> "_Runner":
    return self

  def __exit__(self, *_) -> None:
    self._envs.close()
    self.log.close()

  def carry_out(self, step: plan.Step) -> list[dict]:
    """Does what is left of a step; returns the clips that it filmed."""
    if isinstance(step, Learn):
      self._learn(step)
    elif isinstance(step, Fork):
      self._fork(step)
    elif isinstance(step, Merge):
      self._merge(step)
    else:
      if step.shown and self._stop_early:  # the first seeds come first
        self._time_decisions(step)
      self._evaluate(step)
      if step.shown:
        self._time_decisions(step)
        return self._film(step)
    return []

  def _env(self, place: Place) -> BatchEnv:
    """Returns the environments of a place; those of the last place are closed."""
    if self._here is None or self._here[0] != place:
      self._envs.close()
      self._here = place, self._envs.enter_context(self._new_env(place))
    return self._here[1]

  def _new_env(self, place: Place) -> BatchEnv:
    return BatchEnv(checks.world_config(self._config, self.policy.spec, place), slots=self._config.slots,
                    processes=self._config.processes)

  def _learn(self, step: Learn) -> None:
    """Runs what is left of the stream up to an episode; the memory is durable after each."""
    c, source = self._config.stream, step.stream
    cell = Cell("stream", c.acting, source.place.task, source.place.condition, source.name, came_from=source.came_from)
    jobs, done = self._missing(cell, source.seeds[: step.until])
    journal_path = self._memory_dir(source) / JOURNAL_NAME
    if not jobs:
      self._note_missing_size(source)
      journal_path.unlink(missing_ok=True)  # of a stream that was killed once all was logged
      return
    if done and not self._memory_dir(source).exists():
      raise Pi0RagError(f"{len(done)} episodes of stream '{source.name}' are logged, but {self._memory_dir(source)}, "
                        "which they taught, is missing: bring it back, or use another --out")
    stage = self._progress.stage(f"{source.name}: learning", step.until, done=len(done))
    rule, how = self._rule(c.steering), checks.online_config(self._config, source.place.task)
    with (self._open_memory(source, read_only=False) as memory, Journal(journal_path) as journal,
          ExecutedLog(self._out / EXECUTED_NAME) as executed):
      part = stream.take_up(memory, journal, source.name, source.seeds[: step.until], step.begin, done,
                            asks=how.asking.when == ASKED)
      if not part.exact and done:
        self._progress.log(f"{source.name}: what was under way is not known (a version before this one began the "
                           "stream, or it was changed): those episodes begin anew, not exactly as they would have run")
      learner = self._agent(memory, rule)
      elsewhere = [record for record in self.log.records if record.phase == "stream" and record.stream != source.name]
      corrected = sum(record.corrected for record in done)
      for record in stream.run(self._env(source.place), learner, cell, part, how, journal,
                               time_limit=plan.family(self._config).time_limit(source.place.task),
                               steered=c.acting == "memory", executed=executed, loop=self._loop,
                               elsewhere=elsewhere):
        self.log.append(record)
        corrected += record.corrected
        stage.advance(note=f"{corrected} corrected, {record.memory_records} records")
      learner.close()
      self._note_size(source, memory)
    journal_path.unlink()

  def _note_size(self, source: Stream, memory: Memory) -> None:
    """Writes down what a memory occupies in this process, store and index together."""
    files.write_json(self._out / MEMORY_SIZES_NAME, _sizes(self._out) | {source.name: memory.memory_bytes()})

  def _note_missing_size(self, source: Stream) -> None:
    """Does so for a stream that was killed between its last episode and that."""
    if source.name not in _sizes(self._out) and self._memory_dir(source).exists():
      with self._open_memory(source, read_only=False) as memory:
        self._note_size(source, memory)

  def _fork(self, step: Fork) -> None:
    """Copies a memory, once: what the other stream makes of it afterwards stays."""
    if not self._memory_dir(step.target).exists():
      backup.backup(self._memory_dir(step.source), self._memory_dir(step.target))

  def _merge(self, step: Merge) -> None:
    """Copies the records of memories into one, once and as a whole."""
    place = self._memory_dir(step.pool)
    if place.exists():
      return
    sources = [self._memory_dir(source) for source in step.pool.streams]
    if not all(source.exists() for source in sources):  # of results that came without their memories
      return
    parts = [anew.read(source) for source in sources]
    # Without the streams' tokens, which places may share: nobody learns here.
    anew.write(place, parts[0].header, [Batch(None, (), batch.records) for part in parts for batch in part.batches()])
    with Memory.load(place, capacity=MAX_CAPACITY) as memory:
      sizes = _sizes(self._out) | {step.pool.name: memory.memory_bytes()}
    files.write_json(self._out / MEMORY_SIZES_NAME, sizes)

  def _evaluate(self, step: Evaluate) -> None:
    """Runs every policy on the evaluation seeds, with the memory frozen; less those that are timed one by one."""
    c = self._config.evaluation
    seeds = step.seeds[c.latency_episodes if step.shown else 0 :]
    for method in step.methods:
      cell = self._cell(step, method)
      label = f"{step.stream.name} after {step.after}" if step.stream else step.place.name
      controls = self._controls(step, method)
      if controls:
        self._evaluate_until_decided(step, method, controls, f"{label}: {method.name}")
        continue
      jobs, done = self._missing(cell, seeds)
      if not jobs:
        continue
      stage = self._progress.stage(f"{label}: {method.name}", len(seeds), done=len(done))
      successes = sum(record.outcome == "success" for record in done)
      for count, record in enumerate(self._episodes(self._env(step.place), step, method, jobs), len(done) + 1):
        successes += record.outcome == "success"
        stage.advance(note=f"{100 * successes / count:.0f} % success")

  def _controls(self, step: Evaluate, method: Method) -> list[list[EpisodeRecord]]:
    """Returns the episodes of each control with which a policy is compared until that is decided."""
    if not self._stop_early or method.name in summary.CONTROLS:
      return []
    ran = [self._records(Cell("eval", name, step.place.task, step.place.condition)) for name in summary.CONTROLS]
    return [records for records in ran if set(step.seeds) <= {record.seed for record in records}]

  def _evaluate_until_decided(self, step: Evaluate, method: Method, controls, label: str) -> None:
    """Runs a policy on the evaluation seeds in their order until the test against each control has decided."""
    jobs, logged = self._missing(self._cell(step, method), step.seeds)
    done = {record.seed: record for record in logged}
    decision, ended, stage = stopping.Decision(controls), [], None
    with contextlib.closing(self._ran(self._env(step.place), step, method, jobs)) as new:
      for record in stopping.in_order(step.seeds, done, new):
        ended.append(record)
        if record.seed not in done:
          stage = stage or self._progress.stage(label, len(step.seeds), done=len(ended) - 1)
          self.log.append(record)
          stage.advance(note=f"{100 * np.mean([r.policy_succeeded for r in ended]):.0f} % success")
        if decision.add(record) and len(ended) < len(step.seeds):
          if stage is not None:
            self._progress.log(f"{label}: stopped early after {len(ended)} of {len(step.seeds)} episodes, "
                               f"{summary.anytime_words([r.policy_succeeded for r in ended if not r.crashed])}")
          return

  def _time_decisions(self, step: Evaluate) -> None:
    """Runs the first seeds of every policy one robot at a time: their latencies are those of one decision."""
    seeds = step.seeds[: self._config.evaluation.latency_episodes]
    config = checks.world_config(self._config, self.policy.spec, step.place)
    with BatchEnv(config, slots=1, processes=min(1, self._config.processes)) as env:
      for method in step.methods:
        jobs, _ = self._missing(self._cell(step, method), seeds)
        if jobs:
          self._warm_up(env, step, method)
        for _ in self._episodes(env, step, method, jobs, keep_latency=True):
          pass

  def _film(self, step: Evaluate) -> list[dict]:
    """Returns clips of the same seeds with and without memory, chosen to show what the memory changed.

    They are kept beside the results, so that a finished sweep films nothing again.
    """
    methods = {method.name: method for method in plan.read_methods(self._config.evaluation.policies)}
    wanted = self._config.evaluation.clips and FILMS in plan.family(self._config).abilities
    if not (wanted and step.stream and {CONTROL, TREATMENT} <= methods.keys()):
      return []
    both = ((step, methods[CONTROL]), (step, methods[TREATMENT]))
    before, after = ({r.seed: r.outcome for r in self._records(self._cell(*one))} for one in both)
    seeds = clips.choose(before, after, self._config.evaluation.clips)
    path = self._out / "clips" / f"{step.stream.directory}.npz"
    kept = clips.load(path, seeds)
    if kept is not None or not self._memory_dir(step.stream).exists():  # of results that came without their memories
      return kept or []
    env = self._env(step.place)
    without, with_memory = (self._traces(env, *one, seeds) for one in both)
    filmed = clips.film(env, seeds, without, with_memory, task=step.place.task, condition=step.place.condition)
    clips.save(path, seeds, filmed)
    return filmed

  def _traces(self, env: BatchEnv, step: Evaluate, method: Method, seeds) -> dict[int, Trace]:
    jobs = collections.deque(Job(seed, index) for index, seed in enumerate(seeds))
    with self._agent_of(step, method) as agent:
      return {t.job.seed: t for t in rollout.run(env, agent, jobs, start=method.start, loop=self._loop)}

  def _episodes(self, env: BatchEnv, step: Evaluate, method: Method, jobs: list[Job], *, keep_latency: bool = False):
    """Yields the records of a frozen policy's episodes, each once it is in the log."""
    for record in self._ran(env, step, method, jobs, keep_latency=keep_latency):
      self.log.append(record)
      yield record

  def _ran(self, env: BatchEnv, step: Evaluate, method: Method, jobs: list[Job], *, keep_latency: bool = False
           ) -> Generator[EpisodeRecord]:
    """Yields the records of a frozen policy's episodes as they end."""
    if not jobs:
      return
    cell = self._cell(step, method)
    detectors = checks.online_config(self._config, step.place.task).detectors
    with self._agent_of(step, method) as agent:
      records = 0 if agent.memory is None else len(agent.memory)
      for trace in rollout.run(env, agent, collections.deque(jobs), start=method.start, loop=self._loop):
        failed = trace.outcome == "failure"
        kind = detect(trace.sensors, detectors, timed_out=True).kind if failed else ""
        yield stream.episode_record(cell, trace, Lesson(failure_kind=kind), memory_records=records,
                                    tick_s=1 / self.policy.spec.control_hz, keep_latency=keep_latency)

  def name(self, step: Evaluate, method: Method) -> overall.CellName:
    """Returns what a summary calls a cell."""
    cell = self._cell(step, method)
    return cell.task, cell.condition, cell.policy, cell.stream, cell.stream_episodes

  def _records(self, cell: Cell) -> list[EpisodeRecord]:
    """Returns what the log has of a cell."""
    return [record for record in self.log.records if stream.cell_of(record) == cell]

  def _missing(self, cell: Cell, seeds: range) -> tuple[list[Job], list[EpisodeRecord]]:
    """Returns (jobs of the seeds that the log does not have, records of those that it has)."""
    done = {record.seed: record for record in self._records(cell) if record.seed in seeds}
    first = self._config.evaluation.first_seed if cell.phase == "eval" else seeds[0] if seeds else 0
    return [Job(seed, seed - first) for seed in seeds if seed not in done], list(done.values())

  def _cell(self, step: Evaluate, method: Method) -> Cell:
    cell = Cell("eval", method.name, step.place.task, step.place.condition)
    if step.stream is None or method.steering is None:
      return cell
    pooled = len(step.stream.streams) if isinstance(step.stream, Pool) else 0
    return dataclasses.replace(cell, stream=step.stream.name, stream_episodes=step.after,
                               came_from=step.stream.came_from, pooled=pooled)

  @contextlib.contextmanager
  def _agent_of(self, step: Evaluate, method: Method):
    """Yields the agent of a method; its memory, if it has one, is only read."""
    if method.steering is None:
      yield Agent(self._other(method.policy) if method.policy else self.policy)
      return
    if step.stream is None:
      raise Pi0RagError(f"policy '{method.name}' steers with '{method.steering}', but no stream taught it")
    rule = self._rule(method.steering)
    with self._open_memory(step.stream, read_only=True) as memory:
      if rules.is_fitted(rule) and not any(memory.counts()[kind] for kind in rule.kinds):
        yield Agent(self.policy)  # nothing to be fitted to: nobody would have a say
        return
      agent = self._agent(memory, rule, self._fits.of(step.stream, step.after, rule, memory))
      try:
        yield agent
      finally:
        agent.close()

  def _other(self, policy: str) -> Policy:
    """Returns a policy that is not the sweep's. Errors: Pi0RagError where it sees or does something else."""
    if policy not in self._others:
      other = directory.load(policy, **_decided(self._config))
      mine, its = self.policy.spec, other.spec
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

  def _agent(self, memory: Memory, rule: rules.SteeringConfig, fit: Fit = UNFITTED) -> Agent:
    c = self._config.memory
    return Agent(self.policy, memory, rule, feeding=c.feeding, deadline_ms=c.deadline_ms or None, fit=fit)

  def _memory_dir(self, source: Stream | Pool) -> pathlib.Path:
    return self._out / "memory" / source.directory

  def _open_memory(self, source: Stream | Pool, *, read_only: bool) -> Memory:
    return Memory.open(self._memory_dir(source), **self.policy.memory_header(), capacity=self._config.memory.capacity,
                       create=not read_only, read_only=read_only)

  def _warm_up(self, env: BatchEnv, step: Evaluate, method: Method) -> None:
    """Compiles a method for a batch of one, so that no latency holds a compilation."""
    moment = env.run({0: Start(step.seeds[0])})[0]
    with self._agent_of(step, method) as agent:
      agent.compile(moment.observation)


def _total_wall_clock(out: pathlib.Path, seconds: float) -> float:
  """Returns the seconds that all runs of a sweep took together, this one included."""
  path = out / WALL_CLOCK_NAME
  before = _noted(path, list[float], [])
  files.write_json(path, [*before, round(seconds, 1)])
  return sum(before) + seconds


def _sizes(out: pathlib.Path) -> dict[str, int]:
  return _noted(out / MEMORY_SIZES_NAME, dict[str, int], {})


def _noted(path: pathlib.Path, kind, nothing):
  """Returns what a sweep wrote down beside its records; nothing where that is missing or damaged."""
  if not path.exists():
    return nothing
  try:
    return schema.read(path, kind)
  except Pi0RagError as error:
    logging.warning("%s; what it said is left out", error)
    return nothing
