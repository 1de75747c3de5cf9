"""What of a sweep may run at the same time: its steps as tasks, and which of them a task waits for.

In the order of the list, one after the other, tasks do what the steps say. Two of them may change places, or run at
once, unless one changes what the other uses.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from eval.overall import is_control
from eval.plan import Evaluate, Fork, Learn, Merge, Method, Place, Pool, Step, Stream
from eval.stream import Cell
from pi0rag_jax.steering import rules
from pi0rag_jax.typing import Config

USES, ADDS, CHANGES = "uses", "adds", "changes"  # a thing; those who only use it, or only add to it, are in no order


@dataclasses.dataclass(frozen=True)
class Fitting:
  """Fits what a method needs to the frozen memory of a step."""

  step: Evaluate
  method: Method


@dataclasses.dataclass(frozen=True)
class Running:
  """Runs some of the seeds of a step with one of its policies, which makes a cell, or a part of it."""

  step: Evaluate
  method: Method
  seeds: range
  timed: bool = False  # one robot at a time: latencies are those of one decision
  controls: tuple[Cell, ...] = ()  # with which it is compared until that is decided; () runs all seeds


@dataclasses.dataclass(frozen=True)
class Filming:
  """Films the same seeds with and without the memory of a step."""

  step: Evaluate
  methods: tuple[Method, Method]  # without and with it


Task = Learn | Fork | Merge | Fitting | Running | Filming


def tasks(config: Config, steps: Sequence[Step], *, filmed: tuple[Method, Method] | None, stop_early: bool = False,
          group: int | None = None) -> list[Task]:
  """Returns the tasks of a sweep's steps, in their order.

  Args:
    filmed: what clips compare; None films nothing.
    stop_early: a policy's evaluation ends once it is decided.
    group: most seeds of a task; None: a cell's are one task's.
  """
  found: list[Task] = []
  whole: dict[Cell, range] = {}  # of the controls so far
  for step in steps:
    if not isinstance(step, Evaluate):
      found.append(step)
      continue
    found += [Fitting(step, method) for method in step.methods if step.stream is not None and _is_fitted(method)]
    first = config.evaluation.latency_episodes if step.shown else 0
    timed: list[Task] = [Running(step, method, step.seeds[:first], timed=True) for method in step.methods if first]
    if stop_early:  # the first seeds come first
      found += timed
    for method in step.methods:
      found += _running(step, method, first, whole if stop_early else {}, group)
      if method.steering is None and is_control(method.name):
        whole[cell(step, method)] = step.seeds
    if not stop_early:
      found += timed
    if step.shown and step.stream is not None and filmed is not None:
      found.append(Filming(step, filmed))
  return found


def _running(step: Evaluate, method: Method, first: int, whole: dict[Cell, range], group: int | None
             ) -> Iterator[Running]:
  controls = tuple(cell for cell, seeds in whole.items() if (cell.task, cell.condition) == (
    step.place.task, step.place.condition) and set(step.seeds) <= set(seeds))
  if controls and not is_control(method.name):
    yield Running(step, method, step.seeds, controls=controls)
    return
  seeds = step.seeds[first:]
  for begin in range(0, len(seeds), group or len(seeds) or 1):
    yield Running(step, method, seeds[begin:][:group])


def cell(step: Evaluate, method: Method) -> Cell:
  """Returns the cell that a policy's episodes in a step belong to."""
  found = Cell("eval", method.name, step.place.task, step.place.condition)
  if step.stream is None or method.steering is None:
    return found
  pooled = len(step.stream.streams) if isinstance(step.stream, Pool) else 0
  return dataclasses.replace(found, stream=step.stream.name, stream_episodes=step.after,
                             came_from=step.stream.came_from, pooled=pooled)


def learning_cell(config: Config, stream: Stream) -> Cell:
  """Returns the cell of a stream's own episodes."""
  return Cell("stream", config.stream.acting, stream.place.task, stream.place.condition, stream.name,
              came_from=stream.came_from)


def place(task: Task) -> Place | None:
  """Returns where a task's episodes run; None where it has none."""
  if isinstance(task, Learn):
    return task.stream.place
  return task.step.place if isinstance(task, Fitting | Running | Filming) else None


def name(task: Task) -> str:
  """Returns what people call a task."""
  if isinstance(task, Learn):
    return f"{task.stream.name}: learning"
  if isinstance(task, Fork):
    return f"{task.target.name}: its memory"
  if isinstance(task, Merge):
    return f"{task.pool.name}: their memory"
  label = f"{task.step.stream.name} after {task.step.after}" if task.step.stream else task.step.place.name
  if isinstance(task, Filming):
    return f"{label}: clips"
  return f"{label}: {task.method.name}{', fitted' * isinstance(task, Fitting)}"


class Graph:
  """Which tasks may begin, by their places in the list."""

  def __init__(self, found: Sequence[Task], *, shared_account: bool = False):
    self._waits = waits([_things(task, shared_account) for task in found])

  def ready(self) -> list[int]:
    """Returns the tasks that may begin now, once each."""
    ready = [task for task, before in self._waits.items() if not before]
    for task in ready:
      del self._waits[task]
    return ready

  def over(self, task: int) -> list[int]:
    """Returns the tasks that may begin since one is over."""
    for before in self._waits.values():
      before.discard(task)
    return self.ready()


def waits(things: Sequence[dict[str, str]]) -> dict[int, set[int]]:
  """Returns the earlier tasks that each has to wait for.

  Args:
    things: what each task does with what: one of USES, ADDS and CHANGES.
  """
  found: dict[int, set[int]] = {}
  before: dict[str, list[tuple[int, str]]] = {}
  for task, mine in enumerate(things):
    found[task] = {other for thing, how in mine.items() for other, its in before.get(thing, ())
                   if how == CHANGES or its != how}
    for thing, how in mine.items():
      before.setdefault(thing, []).append((task, how))
  return found


def _things(task: Task, shared_account: bool) -> dict[str, str]:
  """Returns what a task does with what."""
  if isinstance(task, Learn):
    return {_memory(task.stream): CHANGES} | ({"account": CHANGES} if shared_account else {})
  if isinstance(task, Fork):
    return {_memory(task.source): USES, _memory(task.target): CHANGES}
  if isinstance(task, Merge):
    return {_memory(task.pool): CHANGES} | {_memory(stream): USES for stream in task.pool.streams}
  source = task.step.stream
  if isinstance(task, Filming):
    assert source is not None
    return {_memory(source): USES} | {str(cell(task.step, method)): USES for method in task.methods}
  found = {_memory(source): USES} if source is not None and task.method.steering is not None else {}
  if source is not None and _is_fitted(task.method):
    streams = source.streams if isinstance(source, Pool) else (source,)
    found |= {f"fits of {one.directory}": CHANGES if isinstance(task, Fitting) else USES for one in (source, *streams)}
  if isinstance(task, Running):
    found |= {str(control): USES for control in task.controls}
    found[str(cell(task.step, task.method))] = CHANGES if task.controls else ADDS
  return found


def _is_fitted(method: Method) -> bool:
  return method.steering is not None and rules.is_fitted(rules.preset(method.steering))


def _memory(source: Stream | Pool) -> str:
  return f"memory of {source.directory}"
