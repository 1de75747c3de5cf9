"""Any world as a stand-in for a robot: a tick passes with every action that it is sent."""

import concurrent.futures
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots.robot import Robot
from pi0rag_jax.worlds.world import Progress, World

_CAMERAS = "cameras and state"  # which a world shows together


class WorldDriver:
  """A world in real time, on a thread of its own; a robot that holds stands still, and so does its time.

  Args:
    apart: else whoever calls waits, so that nothing depends on which thread was faster. Pictures are drawn when they
      are asked for then.
  """

  def __init__(self, world: World, robot: Robot, *, apart: bool = True):
    self.world, self.robot = world, robot
    self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="world") if apart else None
    self._seen: dict[str, Any] | None = None
    self._seen_s = 0.0
    self._waiting, self._counting = 0, threading.Lock()  # actions that were not executed yet
    self.progress: Progress | None = None
    self.fault = ""

  def begin(self, seed: int) -> None:
    """Starts the episode of a seed."""
    self.fault, self.progress = "", None
    self._call(self._begin, seed)

  def stamps(self) -> Mapping[str, float]:
    """Returns when the world last showed itself; one that has nothing to do is as it was."""
    return {_CAMERAS: self._seen_s} if self._thread is not None and self._waiting else {}

  def observe(self) -> dict[str, Any]:
    """Returns the newest observation."""
    if self._seen is None:  # never where the world has a thread
      self._look()
    assert self._seen is not None, "a world has begun"
    return self._seen

  def act(self, action_A: np.ndarray) -> None:
    """Has the world execute an action, after those before it."""
    if self._thread is None:
      self._advance(action_A)
      return
    with self._counting:
      if not self._waiting:
        self._seen_s = time.monotonic()  # it was idle
      self._waiting += 1
    self._thread.submit(self._later, action_A)

  def hold(self) -> None:
    """Does nothing: without an action no time passes."""

  def plan(self, count: int) -> np.ndarray:
    """Returns what the world's expert would execute, float[count, A]."""
    return self._call(self.world.plan, count)

  def more_time(self) -> None:
    """Has the whole time limit ahead again."""
    self._call(self.world.more_time)

  def film(self, size: int) -> np.ndarray:
    """Returns a picture uint8[size, size, 3] for people."""
    return self._call(self.world.film, size)

  def close(self) -> None:
    """Frees the world."""
    self._call(self.world.close)
    if self._thread is not None:
      self._thread.shutdown()

  def _call(self, function: Callable, *given: Any) -> Any:
    return function(*given) if self._thread is None else self._thread.submit(function, *given).result()

  def _begin(self, seed: int) -> None:
    self.world.begin(seed)
    self._seen = None
    if self._thread is not None:
      self._look()

  def _look(self) -> None:
    self._seen, self._seen_s = self.world.observe(), time.monotonic()

  def _advance(self, action_A: np.ndarray) -> None:
    self.progress, self._seen = self.world.advance(np.asarray(action_A, np.float32)[None]), None

  def _later(self, action_A: np.ndarray) -> None:
    try:
      if self.fault or (self.progress is not None and self.progress.done):
        return
      self.progress = self.world.advance(np.asarray(action_A, np.float32)[None])
      # One that is behind shows itself less often.
      if self._waiting == 1 or time.monotonic() - self._seen_s > 2 * self.robot.tick_s:
        self._look()
    except Pi0RagError as error:
      self.fault = f"the world is broken: {error}"
    finally:
      with self._counting:
        self._waiting -= 1
