"""Ticks of a fixed rate on an absolute clock: what one is late by the next one is not."""

import time
from collections.abc import Callable


class Pacer:
  """The clock of a control loop."""

  def __init__(self, tick_s: float, clock: Callable[[], float] = time.monotonic,
               sleep: Callable[[float], object] = time.sleep):
    self.tick_s, self._clock, self._sleep = tick_s, clock, sleep
    self.ticks = self.overruns = 0  # overruns: ticks whose work was not done when the next one was due
    self.late_s = 0.0  # by which the work of a tick was late at most
    self.start()

  def start(self) -> None:
    """Begins to count from now on."""
    self._due_s = self._clock() + self.tick_s

  def wait(self) -> None:
    """Returns at the beginning of the next tick; after an overrun that is the next one on the clock's grid."""
    late_s = self._clock() - self._due_s
    self.ticks += 1
    if late_s > 0:
      self.overruns += 1
      self.late_s = max(self.late_s, late_s)
      self._due_s += self.tick_s * (late_s // self.tick_s + 1) if late_s > self.tick_s else 0.0
    if (left_s := self._due_s - self._clock()) > 0:
      self._sleep(left_s)
    self._due_s += self.tick_s
