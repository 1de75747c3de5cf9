"""Chains of tasks, as CALVIN counts them: `python -m eval.chains --world=calvin --policy=ANY --out=DIR`.

A chain asks for its tasks one after the other, the next only once the last is done. What counts is how many are done
on average, and how often the first, the second, ... is. In CALVIN's world a chain is one episode, on a table that
nobody tidies (task `chain`: five tasks of 360 ticks each). Tasks of other worlds that share no scene, such as
LIBERO-10, follow each other in scenes of their own.

Rows of several calls are kept side by side in DIR, and a killed call goes on. The policy `expert` is the world's own.
With `--memory` records steer the policy; with `--teach` the expert takes over as a supervisor would, and what the
memory learns in one chain it has in the next.
"""

import contextlib
import functools
import pathlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags, logging

from eval import chain_summary, provenance, stream
from eval.progress import SweepProgress
from eval.records import STAGES, EpisodeRecord, RecordLog
from eval.stream import Cell
from pi0rag_jax import cli, files, schema
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning.online import TAKEOVER, Lesson, OnlineConfig
from pi0rag_jax.memory import address
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.policy import compiling, directory
from pi0rag_jax.steering import rules
from pi0rag_jax.steering.agent import Agent, start_with
from pi0rag_jax.worlds import experts, registry, rollout
from pi0rag_jax.worlds.batch import BatchEnv
from pi0rag_jax.worlds.episode import Job
from pi0rag_jax.worlds.journal import Journal
from pi0rag_jax.worlds.world import EVALUATION_SEEDS, NOMINAL, Family, WorldConfig

COMMAND = "eval.chains"
RECORDS_NAME, SUMMARY_NAME, SETTINGS_NAME, JOURNAL_NAME = "records.jsonl", "summary.json", "settings.json", "journal"
CHAIN, EXPERT = "chain", "expert"
# The tasks of worlds whose episodes are no chains.
LEGS = {"libero": tuple(f"libero_10/{number}" for number in range(10))}
# Runs the episodes of a task that some seeds begin, and yields their records as they end.
Runner = Callable[[str, Sequence[int]], Iterator[EpisodeRecord]]


def legs(world: str, family: Family, asked: Sequence[str]) -> tuple[str, ...]:
  """Returns the tasks whose episodes make a chain, in order. Errors: Pi0RagError where nobody says which."""
  if asked:
    for task in asked:
      registry.check(family, task, NOMINAL)
    return tuple(asked)
  if CHAIN in family.tasks:
    return (CHAIN,)
  if world in LEGS:
    return LEGS[world]
  raise Pi0RagError(f"the world '{world}' has no chains of its own: say which --tasks follow each other")


def run_chains(log: RecordLog, cell: Cell, tasks: Sequence[str], seeds: range, run: Runner, progress: SweepProgress
               ) -> None:
  """Runs what the log lacks of some chains: task by task, those whose tasks before are done."""
  alive = list(seeds)
  for task in tasks:
    known = {record.seed: record for record in log.records if _is_of(record, cell, task)}
    stage = progress.stage(f"{cell.policy}: {task}", len(alive), done=sum(seed in known for seed in alive))
    left = [seed for seed in alive if seed not in known]
    for record in run(task, left) if left else ():
      log.append(record)
      known[record.seed] = record
      lengths = [record.extra.get(STAGES, int(record.policy_succeeded)) for record in known.values()]
      stage.advance(note=f"{sum(lengths) / len(lengths):.2f} tasks done on average")
    alive = [seed for seed in alive if known[seed].policy_succeeded]


def _is_of(record: EpisodeRecord, cell: Cell, task: str) -> bool:
  return (record.policy, record.condition, record.task) == (cell.policy, cell.condition, task)


def by_expert(config: Callable[[str], WorldConfig], cell: Cell) -> Runner:
  """Returns what runs episodes by the world's expert, without pictures."""
  def run(task: str, seeds: Sequence[int]) -> Iterator[EpisodeRecord]:
    with contextlib.closing(registry.make_world(config(task))) as world:
      for seed in seeds:
        progress = experts.run_episode(world, seed)
        outcome = "crashed" if progress.error else "success" if progress.success else "failure"
        yield EpisodeRecord(cell.phase, cell.policy, task, cell.condition, "", seed, seed - seeds[0], outcome,
                            steps=progress.ticks, error=progress.error,
                            extra={} if progress.stages is None else {STAGES: progress.stages})
  return run


def by_agent(agent: Agent, config: Callable[[str], WorldConfig], cell: Cell, *, slots: int, processes: int) -> Runner:
  """Returns what runs episodes by a policy, and its frozen memory if it has one. Latencies are kept of a single slot.
  """
  def run(task: str, seeds: Sequence[int]) -> Iterator[EpisodeRecord]:
    records, tick_s = 0 if agent.memory is None else len(agent.memory), 1 / agent.policy.spec.control_hz
    of_task = Cell(cell.phase, cell.policy, task, cell.condition, cell.stream)
    with BatchEnv(config(task), slots=slots, processes=processes) as env:
      for trace in rollout.run(env, agent, deque(Job(seed, index) for index, seed in enumerate(seeds))):
        yield stream.episode_record(of_task, trace, Lesson(), memory_records=records, tick_s=tick_s,
                                    keep_latency=slots == 1)
  return run


def by_learner(memory: Memory, make_agent: Callable[[], Agent], config: Callable[[str], WorldConfig], cell: Cell,
               log: RecordLog, journal: Journal, *, seeds: range, limit: float, corrected_max: int, slots: int,
               processes: int) -> Runner:
  """Returns what runs a stream that teaches a memory: the expert takes over; a kill changes nothing.

  The agent is made once the memory is where the logged chains left it.
  """
  how = OnlineConfig.from_dict({"taught_by": TAKEOVER, "corrected_max": corrected_max})

  def run(task: str, _: Sequence[int]) -> Iterator[EpisodeRecord]:
    registry.require_expert(config(task))
    done = [record for record in log.records if _is_of(record, cell, task)]
    part = stream.take_up(memory, journal, cell.stream, seeds, 0, done)
    with (contextlib.closing(make_agent()) as agent,
          BatchEnv(config(task), slots=slots, processes=processes) as env):
      for record, _executed in stream.run(env, agent, cell, part, how, journal, time_limit=limit):
        yield record
  return run


def main(_) -> None:
  """Runs chains and prints their summary; a user's mistake ends in one line and status 2."""
  logging.set_verbosity(logging.WARNING)
  with cli.user_errors(COMMAND):
    run(flags.FLAGS)


def run(values) -> None:
  """See `main`; `values` are the flags."""
  options = schema.parse(values.options.encode(), dict[str, Any], "--options") if values.options else {}
  family, out = registry.family(values.world, options), pathlib.Path(values.out).expanduser()
  tasks, name = legs(values.world, family, values.tasks), values.name or _name(values)
  for task in tasks:
    registry.check(family, task, values.condition)
  seeds = range(values.seed, values.seed + values.chains)
  cell = Cell("stream" if values.teach else "eval", name, tasks[0], values.condition, name if values.memory else "")
  if values.teach and (not values.memory or values.policy == EXPERT or len(tasks) > 1):
    raise Pi0RagError("--teach needs a --memory that learns, a policy that is taught, and chains of one episode each")
  settings = {"world": values.world, "options": options, "condition": values.condition, "tasks": list(tasks),
              "policy": pathlib.Path(values.policy).name, "steering": values.steering if values.memory else "",
              "teach": values.teach, "first_seed": values.seed}
  _require_same(out / SETTINGS_NAME, f"{name}/{values.condition}", settings)
  with RecordLog(out / RECORDS_NAME) as log, SweepProgress() as progress, contextlib.ExitStack() as opened:
    runner = _runner(values, family, options, cell, log, seeds, tasks, opened)
    run_chains(log, cell, tasks, seeds, runner, progress)
    rows = chain_summary.summarize(log.records, family, tasks)
  files.write_json(out / SUMMARY_NAME, {"name": "chains", "settings": schema.read(out / SETTINGS_NAME, dict[str, Any]),
                                        "versions": provenance.versions(), "hardware": provenance.hardware(),
                                        "rows": rows})
  for row in rows:
    print(chain_summary.in_words(row))


def _runner(values, family: Family, options: dict[str, Any], cell: Cell, log: RecordLog, seeds: range,
            tasks: Sequence[str], opened: contextlib.ExitStack) -> Runner:
  if values.policy == EXPERT:
    if values.memory:
      raise Pi0RagError("the expert needs no --memory")
    of_task = lambda task: WorldConfig(task, values.condition, values.world, options, horizon=1)  # noqa: E731
    for task in tasks:
      registry.require_expert(of_task(task))
    return by_expert(of_task, cell)
  compiling.keep_programs()
  where, (spec, _) = address.given(values), directory.describe(values.policy)
  policy = directory.load(values.policy, start=start_with(where, spec, values.start or None))
  config = lambda task: rollout.world_config(policy.spec, task, values.condition, world=values.world,  # noqa: E731
                                             options=options)
  for task in tasks:
    config(task)  # says what is wrong before anything runs
  if not where:
    return by_agent(Agent(policy), config, cell, slots=values.slots, processes=values.processes)
  memory = opened.enter_context(Memory.open(where, **policy.memory_header(), create=values.teach,
                                            read_only=not values.teach))
  make_agent = functools.partial(Agent, policy, memory, rules.preset(values.steering))
  if not values.teach:
    agent = opened.enter_context(contextlib.closing(make_agent()))
    return by_agent(agent, config, cell, slots=values.slots, processes=values.processes)
  journal = opened.enter_context(Journal(pathlib.Path(values.out) / f"{JOURNAL_NAME}.{cell.policy}"))
  return by_learner(memory, make_agent, config, cell, log, journal, seeds=seeds, limit=family.time_limit(tasks[0]),
                    corrected_max=values.corrected_max, slots=values.slots, processes=values.processes)


def _name(values) -> str:
  ending = "" if not values.memory else "_taught" if values.teach else "_memory"
  return pathlib.Path(values.policy).name + ending


def _require_same(path: pathlib.Path, name: str, settings: dict[str, Any]) -> None:
  """Notes the settings of a row, or refuses those of another one of this name."""
  known = schema.read(path, dict[str, Any]) if path.exists() else {}
  before = known.get(name, settings)
  for entry, value in settings.items():
    if before.get(entry) != value:
      raise Pi0RagError(f"{path.parent} has a row '{name}' whose {entry} was {before.get(entry)!r}, is {value!r}: give "
                        "this one another --name, or use another --out")
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_json(path, known | {name: settings})


if __name__ == "__main__":  # flags are one namespace for a whole process: only the command that runs defines its own
  flags.DEFINE_string("world", "calvin", "A family of worlds.")
  flags.DEFINE_string("options", "", "Options of the world, JSON.")
  flags.DEFINE_string("condition", NOMINAL, "Name of its condition.")
  flags.DEFINE_list("tasks", [], "Whose episodes follow each other; by default the world's chains, or LIBERO-10.")
  flags.DEFINE_string("policy", EXPERT, "As pi0rag_jax.serving.server takes it, for the world's robot; or 'expert'.")
  cli.define_memory("Memory that steers the policy.", "", versions=False)
  flags.DEFINE_string("steering", "residual", "How the memory steers.")
  flags.DEFINE_string("start", "", "Where the flow starts; '' is the policy's own, or the memory's.")
  flags.DEFINE_bool("teach", False, "The memory learns from an expert who takes over, from chain to chain.")
  flags.DEFINE_integer("corrected_max", 10**6, "Chains that the expert may take over.", lower_bound=0)
  flags.DEFINE_integer("chains", 1000, "How many.", lower_bound=1)
  flags.DEFINE_integer("seed", EVALUATION_SEEDS.start, "Of the first chain.")
  flags.DEFINE_integer("slots", 16, "Chains at a time; with 1, latencies are those of one robot.", lower_bound=1)
  flags.DEFINE_integer("processes", 2, "Of simulation.", lower_bound=0)
  flags.DEFINE_string("name", "", "Of the row; by default the policy's, and whether it has a memory.")
  flags.DEFINE_string("out", None, "Folder of the results; further rows are put beside those that it has.")
  flags.mark_flag_as_required("out")
  app.run(main, flags_parser=cli.flags_parser(COMMAND))
