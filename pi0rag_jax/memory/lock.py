"""One writer per memory directory: an advisory lock that the kernel drops when its process dies."""

import contextlib
import fcntl
import os
import time
from pathlib import Path

from pi0rag_jax.errors import Pi0RagError

NAME = "memory.lock"
_POLL_S = 0.02


class DirectoryLock:
  """The writer's lock on a directory; held from construction to `release`.

  Errors: Pi0RagError naming the holding process if another writer keeps it longer than `timeout_s`.
  """

  def __init__(self, directory: Path, timeout_s: float):
    self._fd = os.open(directory / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    deadline = time.monotonic() + timeout_s
    while not _try(self._fd, fcntl.LOCK_EX):
      if time.monotonic() >= deadline:
        holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(self._fd)
        raise Pi0RagError(
          f"{directory} is in use for writing by process {holder}: wait for it, or open with read_only=True"
        )
      time.sleep(_POLL_S)
    os.ftruncate(self._fd, 0)
    os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

  def release(self) -> None:
    """Lets the next writer in; a second call does nothing."""
    if self._fd >= 0:
      # Not by closing alone: a forked child may have inherited the descriptor, and the lock with it.
      fcntl.flock(self._fd, fcntl.LOCK_UN)
      os.close(self._fd)
      self._fd = -1


@contextlib.contextmanager
def no_writer(directory: Path):
  """Yields True while it holds every writer off, False if a writer is there (or locks cannot be made)."""
  try:
    fd = os.open(directory / NAME, os.O_RDONLY | os.O_CREAT, 0o666)
  except OSError:
    fd = -1
  try:
    # Where no lock can be made because nothing can be written, nobody writes either.
    yield _try(fd, fcntl.LOCK_SH) if fd >= 0 else not os.access(directory, os.W_OK)
  finally:
    if fd >= 0:
      os.close(fd)


def _try(fd: int, kind: int) -> bool:
  try:
    fcntl.flock(fd, kind | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True
