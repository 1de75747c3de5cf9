"""What a sweep does, stage by stage: streams in which the memory learns, then evaluations with it frozen."""

import collections
import contextlib
import dataclasses
import json
import pathlib
import time

from rich.console import Console

from eval import clips, provenance, report, rollout, stream
from eval.progress import SweepProgress
from eval.records import RecordLog
from eval.stream import Cell
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.learning.failure import failure_kind
from pi0rag_jax.learning.online import Lesson, OnlineConfig
from pi0rag_jax.learning.trace import Job, Trace
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.policy import shipped, steering
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.policy.rag_policy import SteeredPolicy
from pi0rag_jax.policy.spec import PolicySpec
from pi0rag_jax.sim.batch import BatchEnv, EnvConfig, Start
from pi0rag_jax.sim.conditions import get_condition
from pi0rag_jax.sim.render import RENDERERS
from pi0rag_jax.sim.tasks import get_task
from pi0rag_jax.typing import Config

STARTS = {"gaussian": True, "zero": False}
WALL_CLOCK_NAME = "wall_clock.json"


@dataclasses.dataclass(frozen=True)
class Method:
  """One policy of an evaluation."""

  name: str
  stochastic: bool
  steering: str  # preset, '' for the base policy


def methods(config: Config) -> list[Method]:
  """Returns the evaluated policies. Errors: Pi0RagError for an unknown start or preset."""
  found = []
  for name, start, preset in config.evaluation.policies:
    if start not in STARTS:
      raise unknown_name("start of the flow", start, STARTS)
    if preset:
      steering.preset(preset)
    found.append(Method(name, STARTS[start], preset))
  return found


def validate(config: Config) -> None:
  """Raises Pi0RagError for the first thing in a configuration that cannot be run, before anything is."""
  get_task(config.task)
  for condition in config.conditions:
    get_condition(condition)
  if config.renderer not in RENDERERS:
    raise unknown_name("renderer", config.renderer, RENDERERS)
  methods(config)
  spec = PolicySpec.load(shipped.directory(config.policy))
  if spec.renderer != config.renderer:
    raise Pi0RagError(f"policy '{config.policy}' was trained on pictures of renderer '{spec.renderer}', the "
                      f"configuration asks for '{config.renderer}': set renderer='{spec.renderer}'")
  last = config.stream.first_seed + config.stream.episodes
  if config.stream.first_seed < config.evaluation.first_seed + config.evaluation.episodes and \
     config.evaluation.first_seed < last:
    raise Pi0RagError("stream and evaluation seeds overlap: choose first_seed values farther apart")


def run(config: Config, out: pathlib.Path, console: Console) -> tuple[dict, list[dict]]:
  """Returns (summary, clips) of all stages; episodes that the log already has are not run again."""
  started = time.monotonic()
  policy = Policy.load(shipped.directory(config.policy))
  log = RecordLog(out / "records.jsonl")
  memory_bytes, films = {}, []
  with SweepProgress(console) as progress:
    for condition in config.conditions:
      part = _Part(config, policy, condition, out, log, progress)
      with BatchEnv(part.env_config, slots=config.slots, processes=config.processes) as env:
        part.learn(env)
        part.evaluate(env)
        part.time_decisions()
        films += part.film(env)
      memory_bytes[part.stream] = part.memory_bytes()
  seeds = [config.evaluation.first_seed + i for i in range(config.evaluation.episodes)]
  facts = provenance.provenance(config, seeds=seeds, renderer=config.renderer,
                                wall_clock_s=_total_wall_clock(out, time.monotonic() - started))
  return report.summarize(log.records, facts, memory_bytes=memory_bytes), films


class _Part:
  """One condition of a sweep: its stream, memory and evaluations."""

  def __init__(self, config: Config, policy: Policy, condition: str, out: pathlib.Path, log: RecordLog,
               progress: SweepProgress):
    self._config, self._policy, self._condition = config, policy, condition
    self._log, self._progress = log, progress
    self._memory_dir = out / "memory" / f"{config.task}-{condition}"
    self._clips_path = out / "clips" / f"{config.task}-{condition}.npz"
    self.stream = f"{config.task}/{condition}"
    self.env_config = EnvConfig(config.task, condition, config.renderer, policy.spec.image_size,
                                policy.spec.model.action_horizon)

  def learn(self, env: BatchEnv) -> None:
    """Runs what is left of the stream; the memory is durable after each episode."""
    c = self._config.stream
    cell = self._cell("stream", "memory", self.stream)
    jobs, done = self._missing(cell, c.first_seed, c.episodes)
    if not jobs:
      return
    stage = self._progress.stage(f"{self._condition}: learning", c.episodes, done=len(done))
    config = steering.preset(c.steering)
    with self._open_memory(read_only=False) as memory:
      stream.forget_unlogged(memory, {record.seed for record in done})
      learner = self._steered(memory, config)
      corrected = sum(record.corrected for record in done)
      online = OnlineConfig(corrected_max=c.corrected_max)
      for record in stream.run(env, learner, cell, jobs, online, band=config.band, corrected=corrected):
        self._log.append(record)
        corrected += record.corrected
        stage.advance(note=f"{corrected} corrected, {record.memory_records} records")
      learner.close()

  def evaluate(self, env: BatchEnv) -> None:
    """Runs every policy on the evaluation seeds, with the memory frozen."""
    c = self._config.evaluation
    for method in methods(self._config):
      cell = self._cell("eval", method.name, self.stream if method.steering else "")
      jobs, done = self._missing(cell, c.first_seed, c.episodes, skip=c.latency_episodes)
      stage = self._progress.stage(f"{self._condition}: {method.name}", c.episodes - c.latency_episodes,
                                   done=c.episodes - c.latency_episodes - len(jobs))
      successes = sum(record.outcome == "success" for record in done)
      for count, record in enumerate(self._episodes(env, method, cell, jobs), len(done) + 1):
        successes += record.outcome == "success"
        stage.advance(note=f"{100 * successes / count:.0f} % success")

  def time_decisions(self) -> None:
    """Runs the first seeds of every policy one robot at a time: their latencies are those of one decision."""
    c = self._config.evaluation
    with BatchEnv(self.env_config, slots=1, processes=min(1, self._config.processes)) as env:
      for method in methods(self._config):
        cell = self._cell("eval", method.name, self.stream if method.steering else "")
        jobs, _ = self._missing(cell, c.first_seed, c.latency_episodes)
        if jobs:
          self._warm_up(env, method)
        for _ in self._episodes(env, method, cell, jobs, keep_latency=True):
          pass

  def film(self, env: BatchEnv) -> list[dict]:
    """Returns clips of the same seeds with and without memory, chosen to show what the memory changed.

    They are kept beside the results, so that a finished sweep films nothing again.
    """
    found = {method.name: method for method in methods(self._config)}
    if not self._config.evaluation.clips or not {"base_z0", "memory"} <= found.keys():
      return []
    outcomes = {name: {r.seed: r.outcome for r in self._log.records
                       if (r.phase, r.policy, r.condition) == ("eval", name, self._condition)}
                for name in ("base_z0", "memory")}
    seeds = clips.choose(outcomes["base_z0"], outcomes["memory"], self._config.evaluation.clips)
    kept = clips.load(self._clips_path, seeds)
    if kept is not None:
      return kept
    traces = {name: self._traces(env, found[name], seeds) for name in ("base_z0", "memory")}
    filmed = clips.film(env, seeds, traces["base_z0"], traces["memory"], task=self._config.task,
                        condition=self._condition, execute_steps=self._policy.spec.execute_steps)
    clips.save(self._clips_path, seeds, filmed)
    return filmed

  def memory_bytes(self) -> int:
    """Returns what the memory occupies in this process, store and index together."""
    with self._open_memory(read_only=True) as memory:
      return memory.memory_bytes()

  def _traces(self, env: BatchEnv, method: Method, seeds) -> dict[int, Trace]:
    jobs = collections.deque(Job(seed, i) for i, seed in enumerate(seeds))
    with self._policy_of(method) as policy:
      return {t.job.seed: t for t in rollout.run(env, policy, jobs, stochastic=method.stochastic)}

  def _episodes(self, env, method: Method, cell: Cell, jobs, *, keep_latency: bool = False):
    """Yields the records of a frozen policy's episodes, each once it is in the log."""
    if not jobs:
      return
    with self._policy_of(method) as policy:
      records = 0 if policy.memory is None else len(policy.memory)
      for trace in rollout.run(env, policy, collections.deque(jobs), stochastic=method.stochastic):
        kind = failure_kind(trace.sensors) if trace.outcome == "failure" else ""
        record = stream.episode_record(cell, trace, Lesson(failure_kind=kind), memory_records=records,
                                       keep_latency=keep_latency)
        self._log.append(record)
        yield record

  def _missing(self, cell: Cell, first_seed: int, count: int, *, skip: int = 0):
    """Returns (jobs that the log does not have, records that it has) of a cell's seeds, less the first `skip`."""
    done = {record.seed: record for record in self._log.records if _same_cell(record, cell)}
    jobs = [Job(first_seed + i, i) for i in range(skip, count) if first_seed + i not in done]
    return jobs, [record for record in done.values() if first_seed + skip <= record.seed < first_seed + count]

  def _cell(self, phase: str, name: str, stream_id: str) -> Cell:
    return Cell(phase, name, self._config.task, self._condition, stream_id)

  @contextlib.contextmanager
  def _policy_of(self, method: Method):
    """Yields the policy of a method; its memory, if it has one, is only read."""
    if not method.steering:
      yield SteeredPolicy(self._policy)
      return
    with self._open_memory(read_only=True) as memory:
      policy = self._steered(memory, steering.preset(method.steering))
      try:
        yield policy
      finally:
        policy.close()

  def _steered(self, memory: Memory, config: steering.SteeringConfig) -> SteeredPolicy:
    c = self._config.memory
    return SteeredPolicy(self._policy, memory, config, feeding=c.feeding, deadline_ms=c.deadline_ms or None)

  def _open_memory(self, *, read_only: bool) -> Memory:
    horizon, action_dim = self._policy.chunk_shape
    return Memory.open(self._memory_dir, key_dim=self._policy.key_dim, action_horizon=horizon,
                       action_dim=action_dim, encoder=self._policy.key_stats.recipe.name,
                       policy=self._policy.fingerprint, capacity=self._config.memory.capacity,
                       create=not read_only, read_only=read_only)

  def _warm_up(self, env: BatchEnv, method: Method) -> None:
    """Compiles a method for a batch of one, so that no latency holds a compilation."""
    moment = env.run({0: Start(self._config.evaluation.first_seed)})[0]
    with self._policy_of(method) as policy:
      policy.infer([moment.observation])


def _same_cell(record, cell: Cell) -> bool:
  return all(getattr(record, name) == value for name, value in dataclasses.asdict(cell).items())


def _total_wall_clock(out: pathlib.Path, seconds: float) -> float:
  """Returns the seconds that all runs of a sweep took together, this one included."""
  path = out / WALL_CLOCK_NAME
  before = json.loads(path.read_text(encoding="utf8")) if path.exists() else []
  path.write_text(json.dumps([*before, round(seconds, 1)]) + "\n", encoding="utf8")
  return sum(before) + seconds
