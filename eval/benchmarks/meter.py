"""CPU time of Python beside the device's work."""

import contextlib
import functools
import threading
import time
from collections.abc import Iterator

import faiss


class Meter:
  """CPU time that Python takes in this process: of all threads that run it, less what they spend in spared calls.

  XLA's own threads and waiting count nothing.
  """

  def __init__(self):
    self._spared_s: list[float] = []

  def read(self) -> float:
    """Returns the CPU seconds of all Python threads so far, less what they spent in spared calls."""
    return sum(map(_cpu_s, threading.enumerate())) - sum(self._spared_s)

  @contextlib.contextmanager
  def sparing(self, agents) -> Iterator[None]:
    """Spares the compiled calls of some agents, and FAISS's search."""
    calls = [(agent.policy, name) for agent in agents for name in ("_encode", "_decode")]
    calls += [(agent, "_steer") for agent in agents if agent.memory is not None]
    calls.append((faiss.IndexScalarQuantizer, "search_c"))
    before = [(owner, name, getattr(owner, name)) for owner, name in dict.fromkeys(calls)]
    for owner, name, call in before:
      setattr(owner, name, self._spared(call))
    yield
    for owner, name, call in before:
      setattr(owner, name, call)

  def _spared(self, call):
    @functools.wraps(call)
    def timed(*args, **kwargs):
      start = time.thread_time()
      try:
        return call(*args, **kwargs)
      finally:
        self._spared_s.append(time.thread_time() - start)
    return timed


def _cpu_s(thread: threading.Thread) -> float:
  """Returns the CPU seconds of a thread, 0 of one that has ended.

  Its clock is named by its id in the kernel, as clock_getcpuclockid(3) does it: `time.pthread_getcpuclockid` reads the
  memory of a thread that may be gone.
  """
  if thread.native_id is None:
    return 0.0
  try:
    return time.clock_gettime((~thread.native_id << 3) | 0b110)  # of one thread, as it was scheduled
  except OSError:
    return 0.0
