"""Runs a sweep: hands out its tasks, here or on a Ray cluster, and keeps the log of what comes back."""

import collections
import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence

from absl import logging
from rich.console import Console

from eval import clips, fits, overall, plan, provenance, stream, summary, tasks, worker
from eval.fits import EXECUTED_NAME
from eval.plan import Evaluate, Fork, Learn, Merge, Method, Step, Stream
from eval.progress import Stage, SweepProgress
from eval.records import EpisodeRecord, RecordLog
from eval.stream import Cell
from eval.tasks import Filming, Fitting, Graph, Running, Task
from eval.worker import JOURNAL_NAME, Assignment, Ended, Make, Note, Result, Size, Worker
from pi0rag_jax import crew, files, schema
from pi0rag_jax.cluster import HERE, Machines
from pi0rag_jax.crew import Crew, Jobs
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy import directory
from pi0rag_jax.steering import rules
from pi0rag_jax.typing import Config
from pi0rag_jax.worlds.replay import ExecutedLog
from pi0rag_jax.worlds.world import FILMS

RECORDS_NAME = "records.jsonl"
WALL_CLOCK_NAME = "wall_clock.json"
MEMORY_SIZES_NAME = "memory_bytes.json"  # by stream
CONTROL, TREATMENT = "base_z0", "memory"  # what clips compare
# Seeds of one of Ray's tasks, for each environment: fewer leave environments idle at its end, more are lost with it.
SEEDS_PER_SLOT = 2


def run(config: Config, out: pathlib.Path, console: Console, *, stop_early: bool = False,
        machines: Machines = HERE) -> tuple[dict, list[dict]]:
  """Returns (summary, clips) of all steps; episodes that the log already has are not run again.

  Args:
    stop_early: a policy's evaluation ends once it is decided, see `stopping`.
    machines: where episodes run; it comes to the same.
  """
  started, steps = time.monotonic(), plan.steps(config)
  films = _films(config)
  found = tasks.tasks(config, steps, filmed=films, stop_early=stop_early,
                      group=None if machines.address is None else SEEDS_PER_SLOT * config.slots)
  with SweepProgress(console) as progress, _Sweep(config, out, progress, found) as sweep:
    sweep.run(Make(config, out.absolute(), machines.processes(config.processes)), machines)
  records = _in_order(config, sweep.log.records, found)
  spec, _ = directory.describe(config.policy, config.checkpoint or None)
  facts = provenance.provenance(config, seeds=plan.evaluation_seeds(config), renderer=spec.renderer,
                                wall_clock_s=_total_wall_clock(out, time.monotonic() - started))
  whole = summary.summarize(records, facts, memory_bytes=_sizes(out), fits=fits.facts(out, steps),
                            planned=_planned(steps), stop_early=stop_early)
  filmed = [clip for task in found if isinstance(task, Filming)
            for clip in clips.load(worker.clips_path(out, task.step), _seeds_to_film(config, task, records)) or []]
  return whole, filmed


def _films(config: Config) -> tuple[Method, Method] | None:
  """Returns what clips compare, None where there are none."""
  methods = {method.name: method for method in plan.read_methods(config.evaluation.policies)}
  wanted = config.evaluation.clips and FILMS in plan.family(config).abilities
  return (methods[CONTROL], methods[TREATMENT]) if wanted and {CONTROL, TREATMENT} <= methods.keys() else None


def _in_order(config: Config, records: Sequence[EpisodeRecord], found: Sequence[Task]) -> list[EpisodeRecord]:
  """Returns episodes in the order of the plan, whichever ended first."""
  cells = [tasks.learning_cell(config, task.stream) if isinstance(task, Learn) else tasks.cell(task.step, task.method)
           for task in found if isinstance(task, Learn | Running)]
  place = {cell: number for number, cell in enumerate(dict.fromkeys(cells))}
  return sorted(records, key=lambda record: (place.get(stream.cell_of(record), len(place)), record.index))


def _planned(steps: Sequence[Step]) -> dict[overall.CellName, int]:
  """Returns how many episodes each cell has at the end."""
  planned: dict[overall.CellName, int] = {}
  for step in (step for step in steps if isinstance(step, Evaluate)):
    for cell in (tasks.cell(step, method) for method in step.methods):
      name = cell.task, cell.condition, cell.policy, cell.stream, cell.stream_episodes
      planned[name] = max(len(step.seeds), planned.get(name, 0))
  return planned


def _seeds_to_film(config: Config, task: Filming, records: Sequence[EpisodeRecord]) -> list[int]:
  """Returns the seeds that show what a memory changed."""
  before, after = ({record.seed: record.outcome for record in records if stream.cell_of(record) == cell}
                   for cell in (tasks.cell(task.step, method) for method in task.methods))
  return clips.choose(before, after, config.evaluation.clips)


@dataclasses.dataclass
class _Shown:
  """What people are told of a cell's progress."""

  stage: Stage
  successes: int
  corrected: int
  nodes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

  def advance(self, record: EpisodeRecord, node: str) -> None:
    """Counts an episode, and where it ran."""
    self.successes += record.policy_succeeded
    self.corrected += record.corrected
    if record.phase == "stream":
      note = f"{self.corrected} corrected, {record.memory_records} records"
    else:
      note = f"{100 * self.successes / (self.stage.done + 1):.0f} % success"
    if node:
      self.nodes[node] += 1
      note += "; " + ", ".join(f"{name} {count}" for name, count in sorted(self.nodes.items()))
    self.stage.advance(note=note)


class _Sweep:
  """Knows what is left of each task, and writes down what comes of it: nobody else writes the log."""

  def __init__(self, config: Config, out: pathlib.Path, progress: SweepProgress, found: Sequence[Task]):
    self._config, self._out, self._progress, self._tasks = config, out, progress, found
    self.log = RecordLog(out / RECORDS_NAME)
    self._of_cell: dict[Cell, list[EpisodeRecord]] = {}
    for record in self.log.records:
      self._of_cell.setdefault(stream.cell_of(record), []).append(record)
    self._files = contextlib.ExitStack()
    self._executed: ExecutedLog | None = None
    self._shown: dict[Cell, _Shown] = {}

  def __enter__(self) -> "_Sweep":
    return self

  def __exit__(self, *_) -> None:
    self._files.close()
    self.log.close()

  def run(self, make: Callable[[], Worker], machines: Machines) -> None:
    """Hands out every task once those that it waits for are over; in this process in the order of the list."""
    graph = Graph(self._tasks, shared_account=self._config.stream.learning.trust.shared)
    with (crew.crew(make, machines, shared=self._out, note=self._progress.log) as hands,
          contextlib.closing(hands.results()) as results):
      self._give(hands, graph.ready())
      for number, node, result in results:
        if result is crew.OVER:
          self._give(hands, graph.over(number))
        else:
          self._book(result, node)

  def _give(self, hands: Jobs, numbers: Iterable[int]) -> None:
    for number in numbers:
      task = self._tasks[number]
      place = tasks.place(task)
      # Streams come first where several tasks run at once: what is left of one can only follow.
      rank = (not isinstance(task, Learn), number) if isinstance(hands, Crew) else (number,)
      hands.give(number, functools.partial(self._assignment, task), name=tasks.name(task), rank=rank,
                likes=place.name if place else "")

  def _assignment(self, task: Task) -> Assignment | None:
    """Returns what is left of a task; None for nothing."""
    match task:
      case Learn():
        return self._learning(task)
      case Fork():
        left = not worker.memory_dir(self._out, task.target).exists()
      case Merge():
        left = self._to_be_merged(task)
      case Fitting():
        rule = rules.preset(task.method.steering or "")
        cell, source = tasks.cell(task.step, task.method), task.step.stream
        assert source is not None
        path = fits.path_of(self._out, source, task.step.after, rule)
        left = bool(self._missing(cell, task.step.seeds)) and not path.exists()
      case Filming():
        return self._filming(task)
      case Running():
        return self._running(task)
    return Assignment(task) if left else None

  def _learning(self, task: Learn) -> Assignment | None:
    cell, source = tasks.learning_cell(self._config, task.stream), task.stream
    records, folder = self._of_cell.get(cell, []), worker.memory_dir(self._out, source)
    if not self._missing(cell, source.seeds[: task.until]):
      # Killed between the last episode and its end; what came later says no less.
      ended = source.name in _sizes(self._out) and not (
        len(records) == task.until and (folder / JOURNAL_NAME).exists())
      return None if ended or not folder.exists() else Assignment(task, records)
    self._show(cell, f"{source.name}: learning", source.seeds[: task.until])
    if self._config.stream.learning.trust.shared:  # an account has what the streams before have earned
      records = [record for record in self.log.records if record.phase == "stream"]
    return Assignment(task, records)

  def _running(self, task: Running) -> Assignment | None:
    cell = tasks.cell(task.step, task.method)
    if not self._missing(cell, task.seeds):
      return None
    self._check_memory(task)
    self._show(cell, tasks.name(task), task.step.seeds)
    return Assignment(task, [record for one in (cell, *task.controls) for record in self._of_cell.get(one, [])])

  def _check_memory(self, task: Running) -> None:
    """Raises Pi0RagError where a memory has learned more since than it is to be evaluated with."""
    source = task.step.stream
    if task.method.steering is None or not isinstance(source, Stream):
      return
    learned = len(self._of_cell.get(tasks.learning_cell(self._config, source), []))
    if learned > task.step.after:
      raise Pi0RagError(f"{tasks.name(task)}: stream '{source.name}' has learned {learned} episodes, so that "
                        f"its memory after {task.step.after} is gone: policies and seeds added later are evaluated "
                        "at the stream's end alone. Leave this checkpoint out, or use another --out")

  def _filming(self, task: Filming) -> Assignment | None:
    assert task.step.stream is not None
    seeds = _seeds_to_film(self._config, task, self.log.records)
    kept = clips.load(worker.clips_path(self._out, task.step), seeds) is not None
    # Results may have come without their memories.
    return None if kept or not worker.memory_dir(self._out, task.step.stream).exists() else Assignment(
      task, seeds=seeds)

  def _to_be_merged(self, task: Merge) -> bool:
    if worker.memory_dir(self._out, task.pool).exists():
      return task.pool.name not in _sizes(self._out)
    # Results may have come without their memories.
    return all(worker.memory_dir(self._out, source).exists() for source in task.pool.streams)

  def _missing(self, cell: Cell, seeds: range) -> set[int]:
    """Returns the seeds that the log does not have of a cell."""
    return set(seeds) - {record.seed for record in self._of_cell.get(cell, [])}

  def _book(self, result: Result, node: str) -> None:
    """Writes down what came of a task; it is on disk when this returns."""
    match result:
      case Ended(record, executed):
        if executed is not None:
          self._executed = self._executed or self._files.enter_context(ExecutedLog(self._out / EXECUTED_NAME))
          self._executed.append(executed)
        self.log.append(record)
        cell = stream.cell_of(record)
        self._of_cell.setdefault(cell, []).append(record)
        self._shown[cell].advance(record, node)
      case Size(source, size):
        files.write_json(self._out / MEMORY_SIZES_NAME, _sizes(self._out) | {source: size})
      case Note(text):
        self._progress.log(text)

  def _show(self, cell: Cell, name: str, seeds: range) -> None:
    """Begins to show a cell's progress, or that of a stream's next part."""
    shown = self._shown.get(cell)
    if shown is None or shown.stage.total != len(seeds):
      done = [record for record in self._of_cell.get(cell, []) if record.seed in seeds]
      self._shown[cell] = _Shown(self._progress.stage(name, len(seeds), done=len(done)),
                                 sum(record.policy_succeeded for record in done),
                                 sum(record.corrected for record in done))


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
