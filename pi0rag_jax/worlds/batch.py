"""Many environments at once, stepped in worker processes: one message per turn and process.

A decision is a few control ticks long; pictures are rendered only where a policy looks, at its end. A fault in
one environment is reported as that slot's error and leaves the others alone.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from pi0rag_jax import errors
from pi0rag_jax.sim.conditions import Condition
from pi0rag_jax.sim.experts import get_expert
from pi0rag_jax.sim.tasks import Task
from pi0rag_jax.sim.truth import Truth, Witness

ROBOT = "panda"  # what the environments' observations and actions are, a name of pi0rag_jax.robots


@dataclasses.dataclass(frozen=True)
class EnvConfig:
  """What the environments of a batch have in common."""

  task: str | Task
  condition: Condition | str
  renderer: str = "raycast"
  image_size: int = 64
  horizon: int = 16  # ticks of an expert's plan
  witness: bool = False  # every tick's truth is handed over too, for measurements of what the sensors tell


@dataclasses.dataclass(frozen=True)
class Moment:
  """The world at a decision, as a worker hands it over."""

  observation: dict[str, Any]
  snapshot: Any  # restores this moment
  success: bool
  done: bool  # success or out of time
  ticks: int  # control ticks since the start
  sensors: list[dict]  # one dict per tick since the last decision, what a robot can measure
  truths: list[Truth]  # likewise, what it cannot; empty unless the configuration asks for a witness
  plan_TA: np.ndarray | None = None  # what the expert planned, after a Follow
  error: str = ""  # traceback or simulator fault; the rest is then meaningless


@dataclasses.dataclass(frozen=True)
class Start:
  """Begins the episode of a seed."""

  seed: int


@dataclasses.dataclass(frozen=True)
class Advance:
  """Executes actions float[n, A], one a tick, until the last or the end of the episode."""

  actions_NA: np.ndarray


@dataclasses.dataclass(frozen=True)
class Follow:
  """Executes the first `count` actions of the expert's plan; the answer's `plan_TA` is the whole plan."""

  count: int


@dataclasses.dataclass(frozen=True)
class Rewind:
  """Goes back to a moment of an earlier episode, with the whole time limit ahead."""

  snapshot: Any


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
  """`slots` environments in `processes` workers (0: in this process, for tests and debuggers).

  The workers start at the first command: an evaluation that finds everything done needs none.
  """

  def __init__(self, config: EnvConfig, *, slots: int, processes: int):
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
    for worker in self._workers:
      worker.close()

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
  """One process that holds every n-th environment.

  A thread reads its answers as they come: a process that cannot get rid of them takes no commands and stands still. An
  environment that is `alone` in its process has nothing to do before its answer is taken, so whoever takes it reads it.
  """

  def __init__(self, config: EnvConfig, *, alone: bool):
    context = multiprocessing.get_context("spawn")
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(target=_serve, args=(theirs, config), daemon=True)
    self._process.start()
    theirs.close()
    self._reader = None if alone else concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="simulation")
    self._last: Callable[[], Any] = lambda: None  # reads the last answer, where no thread does

  def submit(self, commands: dict[int, Any]) -> Callable[[], dict[int, Any]]:
    """Returns a function that waits for the answers to these commands, which come after all earlier ones."""
    # Where the process is gone, whoever reads says so.
    with contextlib.suppress(EOFError, OSError):
      self._last()
      self._pipe.send(commands)
    if self._reader is not None:
      return functools.partial(self._answers, self._reader.submit(self._pipe.recv).result)
    self._last = functools.cache(self._pipe.recv)
    return functools.partial(self._answers, self._last)

  def _answers(self, received: Callable[[], Any]) -> dict[int, Any]:
    try:
      return received()
    except (EOFError, OSError) as e:
      self._process.join(timeout=5)
      raise errors.Pi0RagError(
          f"a simulation process ended by itself (exit code {self._process.exitcode}); out of memory?") from e

  def close(self) -> None:
    """Ends the process after what it was asked to do, by force where that takes too long."""
    with contextlib.suppress(OSError):
      self._pipe.send(None)
    self._process.join(timeout=5)
    if self._process.is_alive():
      self._process.terminate()
    if self._reader is not None:
      self._reader.shutdown()
    self._pipe.close()


def _serve(pipe, config: EnvConfig) -> None:
  """Answers commands until there are None or the other end hangs up. Ctrl-C is the parent's business."""
  import signal

  signal.signal(signal.SIGINT, signal.SIG_IGN)
  for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
  slots = _Slots(config)
  while True:
    try:
      commands = pipe.recv()
    except (EOFError, ConnectionResetError):  # the latter where the other end was killed
      return
    if commands is None:
      return
    pipe.send({slot: slots.answer(slot, command) for slot, command in commands.items()})


class _Slots:
  """The environments of one process, made at their first use."""

  def __init__(self, config: EnvConfig):
    self._config = config
    self._envs: dict[int, Any] = {}

  def answer(self, slot: int, command):
    try:
      return self._handle(self._env(slot), command)
    # Whatever goes wrong inside an episode belongs to its record, as `crashed` with the traceback.
    except Exception:
      return Moment({}, None, False, True, 0, [], [], error=traceback.format_exc())

  def _env(self, slot: int):
    if slot not in self._envs:
      from pi0rag_jax.sim.env import PandaEnv

      c = self._config
      self._envs[slot] = PandaEnv(c.task, c.condition, renderer=c.renderer, image_size=c.image_size)
    return self._envs[slot]

  def _handle(self, env, command):
    match command:
      case Start(seed):
        env.reset(seed=seed)
        return _moment(env)
      case Rewind(snapshot):
        env.restore(snapshot)
        env.ticks = 0
        return _moment(env)
      case Advance(actions_NA):
        return _advance(env, actions_NA, self._config)
      case Follow(count):
        plan_TA = get_expert(env.task.name).plan(env, self._config.horizon)
        return dataclasses.replace(_advance(env, plan_TA[:count], self._config), plan_TA=plan_TA)
      case Plan(snapshots):
        return _plans(env, snapshots, self._config.horizon)
      case Film():
        return _film(self._config, command)
    raise errors.Pi0RagError(f"unknown command {type(command).__name__}")


def _advance(env, actions_NA, config: EnvConfig) -> Moment:
  """Executes actions without rendering and looks at the world once, at the end."""
  witness = Witness(env.physics) if config.witness else None
  info, sensors, truths, done = {}, [], [], False
  for action_A in actions_NA:
    _, terminated, truncated, info = env.advance(action_A[None])
    sensors.append(info["failure_signals"])
    if witness is not None:
      truths.append(witness.look())
    done = terminated or truncated
    if done:
      break
  return dataclasses.replace(_moment(env, info, done=done), sensors=sensors, truths=truths)


def _moment(env, info: Mapping[str, Any] = MappingProxyType({}), *, done: bool = False) -> Moment:
  """Returns the world as it is; `info` is the last tick's."""
  fault = info.get("sim_error") or ""
  observation = {} if done else env.observe()
  success = bool(info.get("success", False))
  return Moment(observation, env.snapshot(), success, done, env.ticks, [], [], error=fault)


def _plans(env, snapshots, horizon: int) -> np.ndarray:
  expert = get_expert(env.task.name)
  here = env.snapshot() if env.has_episode else None  # a slot without an episode has no place to return to
  chunks = []
  for snapshot in snapshots:
    env.restore(snapshot)
    chunks.append(expert.plan(env, horizon))
  if here is not None:
    env.restore(here)
  return np.stack(chunks)


def _film(config: EnvConfig, film: Film) -> np.ndarray:
  from pi0rag_jax.sim.env import PandaEnv

  env = PandaEnv(config.task, config.condition, renderer=config.renderer, image_size=film.size)
  env.reset(seed=film.seed)
  frames = [env.observe()["image"]["base_0_rgb"]]
  for i, action_A in enumerate(film.actions_NA, 1):
    _, terminated, truncated, _ = env.advance(action_A[None])
    done = terminated or truncated
    if i % film.every == 0 or done:
      frames.append(env.observe()["image"]["base_0_rgb"])
    if done:
      break
  env.close()
  return np.stack(frames)
