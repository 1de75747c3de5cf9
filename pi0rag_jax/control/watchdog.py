"""Has a robot stand still within some ms of when something is no longer as it should be, whatever the loop does."""

import threading
import time
from collections.abc import Callable

import numpy as np

from pi0rag_jax.control.driver import Driver

POLL_S = 0.005


class Watchdog:
  """Looks every POLL_S on a thread of its own; actions go through it, so that none goes out after it has spoken."""

  def __init__(self, driver: Driver, faults: Callable[[], str], *, clock: Callable[[], float] = time.monotonic):
    """Args: faults: says what is wrong now, '' if nothing is; any thread may ask."""
    self._driver, self._faults, self._clock = driver, faults, clock
    self._gate = threading.Lock()
    self._over = threading.Event()
    self.fault, self.since_s = "", 0.0  # what is wrong, and since when the robot stands still for it
    self.trips = 0

  def start(self) -> None:
    """Begins to look."""
    threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

  def look(self) -> str:
    """Returns what is wrong now; the robot stands still if anything is, until nothing is wrong any more."""
    with self._gate:
      try:
        fault = self._faults()
      except Exception as error:  # a watchdog that dies guards nothing
        fault = f"the robot's driver: {type(error).__name__}: {error}"
      if fault and not self.fault:
        self._driver.hold()
        self.trips, self.since_s = self.trips + 1, self._clock()
      self.fault = fault
      return fault

  def act(self, action_A: np.ndarray) -> bool:
    """Returns whether the robot was sent an action, which it is not while something is wrong."""
    with self._gate:
      if self.fault:
        return False
      self._driver.act(action_A)
      return True

  def close(self) -> None:
    """Ends the thread."""
    self._over.set()

  def _watch(self) -> None:
    while not self._over.wait(POLL_S):
      self.look()
