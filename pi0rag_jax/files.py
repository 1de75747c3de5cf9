"""Files that stay whole when the process is killed at any moment.

`write` and what follows it make files that are whole or absent: written under another name, brought to the disk, then
renamed. A `LineLog` grows by lines that are whole or absent.
"""

import fcntl
import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from pi0rag_jax.errors import Pi0RagError

_log = logging.getLogger(__name__)


def write(path: str | os.PathLike, fill: Callable[[BinaryIO], Any]) -> None:
  """Writes what `fill` puts into a file, in the place of what was there; a reader sees the old or the whole new one.

  Several writers of the same content do no harm. Folders that are missing are made.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  draft = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
  try:
    with draft.open("wb") as file:
      fill(file)
      file.flush()
      os.fsync(file.fileno())
    os.replace(draft, path)
    sync(path.parent)
  finally:
    draft.unlink(missing_ok=True)


def sync(path: str | os.PathLike) -> None:
  """Makes a file's content or a folder's entries durable."""
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text, as `write` does."""
  write(path, lambda file: file.write(text.encode()))


def write_json(path: str | os.PathLike, values: Any) -> None:
  """Writes values as JSON, as `write` does.

  Raises:
    TypeError, ValueError: JSON cannot hold them; NaN and infinity it cannot.
  """
  write_text(path, json.dumps(values, indent=1, allow_nan=False) + "\n")


class LineLog:
  """A file of lines that this process alone appends to.

  A line is on disk before `append` returns. Only the last line can be torn, by a kill in mid-write; opening drops it.
  Raises Pi0RagError when another process writes the file.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = Path(path)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - open for as long as the log is
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      self._file.close()
      raise Pi0RagError(f"'{self.path}' is being written by another process: wait for it, or choose another folder"
                        ) from None
    whole = whole_lines(self.path)
    self._size = sum(len(line) + 1 for line in whole)
    self._file.truncate(self._size)
    sync(self.path.parent)

  def append(self, *lines: bytes, durable: bool = True) -> None:
    """Writes lines, given without their ends; what an error (a full disk) cut short is taken back.

    Those that are not `durable` yet become so at the next call that is: `append()` alone will do.
    """
    text = b"".join(line + b"\n" for line in lines)
    try:
      _write_all(self._file, text)
      if durable:
        os.fsync(self._file.fileno())
    except OSError:
      self._file.truncate(self._size)
      raise
    self._size += len(text)

  def __len__(self) -> int:
    """Bytes written."""
    return self._size

  def close(self) -> None:
    """Releases the file to other processes."""
    self._file.close()

  def __enter__(self) -> "LineLog":
    return self

  def __exit__(self, *_):
    self.close()


def whole_lines(path: str | os.PathLike) -> list[bytes]:
  """Returns the lines of a file, without their ends and without a torn last one."""
  data = Path(path).read_bytes()
  *whole, torn = data.split(b"\n")
  if torn:
    _log.warning("%s: dropped a torn last line of %d bytes", path, len(torn))
  return whole


def _write_all(file, line: bytes) -> None:
  """Writes every byte: an unbuffered file may take fewer than it was given."""
  while line:
    line = line[file.write(line) :]
