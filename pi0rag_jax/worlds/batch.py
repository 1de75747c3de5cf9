"""Many worlds at once, stepped in worker processes: one message per turn and process.

A decision is a few control ticks long; pictures are rendered only where a policy looks, at its end. A fault in
one world is reported as that slot's error and leaves the others alone; a process that dies or hangs costs the episodes
that it holds.
"""

import atexit
import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import pickle
import select
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pi0rag_jax import errors
from pi0rag_jax.worlds import registry
from pi0rag_jax.worlds.world import REWINDS, Progress, WorldConfig

_NOTHING_YET = Progress(0, success=False, done=False)
_CLOSING_S = 5.0


@dataclasses.dataclass(frozen=True)
class Moment:
  """The world at a decision, as a worker hands it over."""

  observation: dict[str, Any]
  snapshot: Any  # restores this moment: bytes that only a world opens; None where it cannot
  success: bool
  done: bool  # success or out of time
  ticks: int  # control ticks since the start
  sensors: Sequence[Mapping]  # one per tick since the last decision, what a robot can measure
  truths: Sequence[Any]  # likewise, what it cannot; empty unless the configuration asks for a witness
  plan_TA: np.ndarray | None = None  # what the expert would do from here on, where the command asked for it
  error: str = ""  # traceback or simulator fault; the rest is then meaningless
  partial: bool | None = None  # see Progress
  stages: int | None = None  # see Progress


@dataclasses.dataclass(frozen=True)
class Start:
  """Begins the episode of a seed."""

  seed: int
  plan: bool = False  # the answer says what the expert would do


@dataclasses.dataclass(frozen=True)
class Advance:
  """Executes actions float[n, A], one a tick, until the last or the end of the episode."""

  actions_NA: np.ndarray
  plan: bool = False  # see Start
  more_time: bool = False  # with the whole time limit ahead, see Expert


@dataclasses.dataclass(frozen=True)
class Rewind:
  """Goes back to a moment of an earlier episode, with the whole time limit ahead."""

  snapshot: Any
  plan: bool = False  # see Start


@dataclasses.dataclass(frozen=True)
class Plan:
  """Asks the expert what it would do at each of some moments: float32[N, horizon, A]; the episode stays put."""

  snapshots: Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Film:
  """Replays a seed's actions and returns pictures uint8[N, size, size, 3] of the base camera, one per `every`."""

  seed: int
  actions_NA: np.ndarray
  size: int
  every: int = 2


class BatchEnv:
  """`slots` worlds in `processes` workers (0: in this process, for tests and debuggers).

  The workers start at the first command: an evaluation that finds everything done needs none.
  """

  def __init__(self, config: WorldConfig, *, slots: int, processes: int):
    if slots < 1 or processes < 0:
      raise errors.Pi0RagError(f"slots must be at least 1 and processes at least 0, got {slots} and {processes}")
    self.config = config
    self.slots = slots
    self._processes = min(processes, slots)
    self._workers: list[_Worker] = []
    self._inline = None if self._processes else _Slots(config)

  def __enter__(self) -> "BatchEnv":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Ends the workers."""
    for worker in self._workers:
      worker.close()
    if self._inline is not None:
      self._inline.close()

  def run(self, commands: dict[int, Any]) -> dict[int, Any]:
    """Returns each slot's answer to its command: a Moment, or an array for Plan and Film.

    An exception inside an environment becomes a Moment with `error` set, whatever the command was.
    """
    return self.submit(commands)()

  def submit(self, commands: dict[int, Any]) -> Callable[[], dict[int, Any]]:
    """Returns at once a function that waits for what `run` returns; commands submitted later are carried out after."""
    unknown = [slot for slot in commands if not 0 <= slot < self.slots]
    if unknown:
      raise errors.Pi0RagError(f"no slots {unknown}: there are 0..{self.slots - 1}")
    if self._inline is not None:
      answers = {slot: self._inline.answer(slot, command) for slot, command in commands.items()}
      return lambda: answers
    if not self._workers:
      self._workers = [_Worker(self.config, alone=self.slots == self._processes) for _ in range(self._processes)]
    shares = [{slot: c for slot, c in commands.items() if slot % self._processes == i} for i in range(self._processes)]
    waiting = [worker.submit(share) for worker, share in zip(self._workers, shares) if share]
    return lambda: {slot: answer for answers in waiting for slot, answer in answers().items()}


class _Worker:
  """One process that holds every n-th world; one that died or hangs is replaced."""

  def __init__(self, config: WorldConfig, *, alone: bool):
    self._config, self._alone = config, alone
    self._link: _Link | None = None

  def submit(self, commands: dict[int, Any]) -> Callable[[], dict[int, Any]]:
    """Returns a function that waits for the answers to these commands, which come after all earlier ones."""
    if self._link is None or self._link.lost:
      self._link = _Link(self._config, alone=self._alone)
    return self._link.submit(commands)

  def close(self) -> None:
    """Ends the process after what it was asked to do, by force where that takes too long."""
    if self._link is not None:
      self._link.close()


class _Link:
  """A process, until it is lost.

  A thread reads its answers as they come: a process that cannot get rid of them takes no commands and stands still. A
  world that is `alone` in its process has nothing to do before its answer is taken, so whoever takes it reads it.
  """

  def __init__(self, config: WorldConfig, *, alone: bool):
    context = multiprocessing.get_context("spawn")
    self._pipe, theirs = context.Pipe()
    # Not a daemon: a world may have a process of its own.
    self._process = context.Process(target=_serve, args=(theirs, config))
    self._process.start()
    _LIVING.add(self)
    theirs.close()
    self._reader = None if alone else concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="simulation")
    self._last: Callable[[], Any] = lambda: None  # reads the last answer, where no thread does
    self._timeout_s = config.timeout_s
    self._ready = select.poll()  # the pipe's own `poll` makes a selector each time
    self._ready.register(self._pipe.fileno(), select.POLLIN)
    self._why = ""

  @property
  def lost(self) -> bool:
    """Whether nothing more will be answered."""
    return bool(self._why)

  def submit(self, commands: dict[int, Any]) -> Callable[[], dict[int, Any]]:
    """See `_Worker.submit`."""
    # Where the process is gone, whoever reads says so.
    with contextlib.suppress(EOFError, OSError):
      self._last()
      self._pipe.send(commands)
    if self._reader is not None:
      return functools.partial(self._answers, tuple(commands), self._reader.submit(self._receive).result)
    self._last = functools.cache(self._receive)
    return functools.partial(self._answers, tuple(commands), self._last)

  def _receive(self) -> dict[int, Any]:
    """Returns the next answers. Errors: EOFError where there will be none."""
    if self._why:
      raise EOFError
    if not self._ready.poll(1000 * self._timeout_s):
      self._give_up(f"a simulation process gave no answer within {self._timeout_s:g} s and was ended")
      raise EOFError
    try:
      return self._pipe.recv()
    except (EOFError, OSError):
      self._process.join(timeout=_CLOSING_S)
      self._give_up(f"a simulation process ended by itself (exit code {self._process.exitcode}); out of memory?")
      raise EOFError from None

  def _answers(self, slots: Sequence[int], received: Callable[[], dict[int, Any]]) -> dict[int, Any]:
    try:
      return received()
    except EOFError:
      return {slot: _crashed(self._why) for slot in slots}

  def _give_up(self, why: str) -> None:
    self._why = why
    self._process.kill()
    self._process.join(timeout=_CLOSING_S)
    _LIVING.discard(self)

  def close(self) -> None:
    """See `_Worker.close`."""
    with contextlib.suppress(OSError):
      self._pipe.send(None)
    self._process.join(timeout=_CLOSING_S)
    if self._process.is_alive():
      self._process.terminate()
      self._process.join(timeout=_CLOSING_S)
    if self._process.is_alive():
      self._process.kill()
    if self._reader is not None:
      self._reader.shutdown()
    self._pipe.close()
    _LIVING.discard(self)


_LIVING: set[_Link] = set()


@atexit.register
def _end_processes() -> None:
  """Ends what nobody closed: a process that is no daemon would be waited for."""
  for link in list(_LIVING):
    link.close()


def _serve(pipe, config: WorldConfig) -> None:
  """Answers commands until there are None or the other end hangs up. Ctrl-C is the parent's business."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  _one_thread()
  slots = _Slots(config)
  while True:
    try:
      commands = pipe.recv()
    except (EOFError, ConnectionResetError):  # the latter where the other end was killed
      commands = None
    if commands is None:
      slots.close()
      return
    answers = {slot: slots.answer(slot, command) for slot, command in commands.items()}
    with contextlib.suppress(BrokenPipeError):
      pipe.send(answers)


class _Slots:
  """The worlds of one process, made at their first use."""

  def __init__(self, config: WorldConfig):
    self._config = config
    self._worlds: dict[int, Any] = {}
    self._begun: set[int] = set()  # slots that have an episode
    self._rewinds = REWINDS in registry.family(config.world, config.options).abilities

  def answer(self, slot: int, command):
    try:
      return self._handle(slot, self._world(slot), command)
    # Whatever goes wrong inside an episode belongs to its record, as `crashed` with the traceback.
    except Exception:
      # What is left of a world after that is not to be trusted.
      if not isinstance(command, Plan):
        self._drop(slot)
      return _crashed(traceback.format_exc())

  def close(self) -> None:
    for slot in list(self._worlds):
      self._drop(slot)

  def _drop(self, slot: int) -> None:
    self._begun.discard(slot)
    world = self._worlds.pop(slot, None)
    if world is not None:
      with contextlib.suppress(Exception):
        world.close()

  def _world(self, slot: int):
    if slot not in self._worlds:
      self._worlds[slot] = registry.make_world(self._config)
    return self._worlds[slot]

  def _handle(self, slot: int, world, command):
    match command:
      case Start(seed, plan):
        self._begun.add(slot)
        world.begin(seed)
        return self._moment(world, _NOTHING_YET, plan=plan)
      case Rewind(snapshot, plan):
        self._begun.add(slot)
        world.restore(pickle.loads(snapshot), fresh_clock=True)
        return self._moment(world, _NOTHING_YET, plan=plan)
      case Advance(actions_NA, plan, more_time):
        if more_time:
          world.more_time()
        return self._moment(world, world.advance(actions_NA), plan=plan)
      case Plan(snapshots):
        return self._plans(slot, world, snapshots)
      case Film():
        return _film(world, command)
    raise errors.Pi0RagError(f"unknown command {type(command).__name__}")

  def _moment(self, world, progress: Progress, *, plan: bool) -> Moment:
    """Looks at the world once, at the end of what it did."""
    over = progress.done or bool(progress.error)
    snapshot = pickle.dumps(world.snapshot(), pickle.HIGHEST_PROTOCOL) if self._rewinds else None
    return Moment({} if over else world.observe(), snapshot, progress.success, over,
                  progress.ticks, progress.sensors, progress.truths,
                  world.plan(self._config.horizon) if plan and not over else None, progress.error, progress.partial,
                  progress.stages)

  def _plans(self, slot: int, world, snapshots) -> np.ndarray:
    here = world.snapshot() if slot in self._begun else None  # without an episode there is no place to return to
    chunks = []
    for snapshot in snapshots:
      world.restore(pickle.loads(snapshot))
      chunks.append(world.plan(self._config.horizon))
    if here is not None:
      world.restore(here)
    return np.stack(chunks)


def _crashed(why: str) -> Moment:
  return Moment({}, None, success=False, done=True, ticks=0, sensors=[], truths=[], error=why)


def _film(world, film: Film) -> np.ndarray:
  world.begin(film.seed)
  frames = [world.film(film.size)]
  for i, action_A in enumerate(film.actions_NA, 1):
    done = world.advance(action_A[None]).done
    if i % film.every == 0 or done:
      frames.append(world.film(film.size))
    if done:
      break
  return np.stack(frames)


def spread(work: Callable[[Any], Any], jobs: Sequence[Any], *, processes: int) -> Iterator[Any]:
  """Yields what some work makes of each job, as it is done, by processes of one thread each; 0 works in this one."""
  if processes == 0:
    yield from map(work, jobs)
    return
  _one_thread()
  with multiprocessing.get_context("spawn").Pool(processes) as pool:
    yield from pool.imap_unordered(work, jobs)


def _one_thread() -> None:
  """Keeps numpy to one thread, where it is not loaded yet: in the processes that are started from here."""
  for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
