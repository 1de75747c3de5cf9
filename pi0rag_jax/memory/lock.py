"""One writer per memory: an advisory lock that the kernel drops when its process dies. Readers take none.

The lock's file, beside the memory's, also says how many commits the writer has made durable. What SQLite finds in a
journal that was cut or taken away is whole but older, and only a number outside of it tells.
"""

import contextlib
import fcntl
import glob
import os
import time
from pathlib import Path

from pi0rag_jax.errors import Pi0RagError

_POLL_S = 0.02


class WriterLock:
  """The writer's lock on a memory; held from construction to `release`, or until it is garbage.

  Errors: Pi0RagError naming the holding process if another writer keeps it longer than `timeout_s`.
  """

  def __init__(self, memory: Path, timeout_s: float):
    # A forked child must not unlock what its parent holds.
    self._owner = os.getpid()
    self._file = open(os.open(path_of(memory), os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)  # noqa: SIM115
    try:
      self._wait(memory, timeout_s)
      self.note(commits(memory))
    except BaseException:
      self.release()
      raise

  def note(self, commits: int) -> None:
    """Writes down how many commits are durable."""
    os.pwrite(self._file.fileno(), f"{self._owner:>10} {commits:>20}\n".encode(), 0)  # of one width: never torn

  def release(self) -> None:
    """Lets the next writer in; a second call does nothing."""
    if not self._file.closed:
      # Not by closing alone: a forked child may have inherited the descriptor, and the lock with it.
      if os.getpid() == self._owner:
        fcntl.flock(self._file, fcntl.LOCK_UN)
      self._file.close()

  def __del__(self):
    if "_file" in vars(self):  # not where it could not be opened
      self.release()

  def _wait(self, memory: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not self._try():
      if time.monotonic() >= deadline:
        raise Pi0RagError(
          f"{memory.parent} is in use for writing by {_holder(self._file.fileno())}: wait for it, or open with "
          "read_only=True"
        )
      time.sleep(_POLL_S)

  def _try(self) -> bool:
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return False
    return True


def path_of(memory: Path) -> Path:
  """Returns the lock's file of a memory's file."""
  return memory.with_suffix(".lock")


def commits(memory: Path) -> int:
  """Returns how many commits the writer made durable, 0 where nothing says so."""
  try:
    return int(path_of(memory).read_bytes().split()[1])
  except (OSError, ValueError, IndexError):
    return 0


def _holder(fd: int) -> str:
  """Returns the living process that holds the lock, in words. It need not be the one that took it: a child inherits."""
  wanted = os.fstat(fd)
  for link in glob.iglob("/proc/[0-9]*/fd/*"):
    process = link.split("/")[2]
    with contextlib.suppress(OSError):
      if os.path.samestat(os.stat(link), wanted) and b"FLOCK" in Path(link.replace("/fd/", "/fdinfo/")).read_bytes():
        return f"process {process}"
  with contextlib.suppress(ValueError, IndexError, ProcessLookupError):
    written = int(os.pread(fd, 32, 0).split()[0])
    with contextlib.suppress(PermissionError):
      os.kill(written, 0)
    return f"process {written}"
  return "another process"
