"""What was decided in episodes that are not over, on disk: after a kill they run again without deciding again.

A memory that learns has gone on since an episode's first decisions, which could not be made again as they were. They
are executed again from here, which leaves the world where it was; only later ones are made anew.
"""

import logging
import os
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np

from pi0rag_jax import files, schema
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds.episode import Step

# A larger file is written anew without what is over, if that is most of it.
LARGEST_BYTES = 64 * 2**20

_log = logging.getLogger(__name__)


class Array(msgspec.Struct, array_like=True):
  """An array in a line of JSON."""

  dtype: str
  shape: list[int]
  data: bytes


class _Entry(msgspec.Struct):
  """A line: one decision."""

  seed: int
  tick: int
  key: Array
  base: Array
  actions: Array
  used: int
  ids: Array
  weight: Array
  missed: bool


class Journal:
  """The decisions of a stream's episodes, until they are logged.

  Whoever changes the memory that decides calls `sync` before: what was decided by what it was is then on disk.
  `whole` is False for a file that is damaged before its last line, which is then worth nothing.
  Raises Pi0RagError when another process writes the file.
  """

  def __init__(self, path: str | os.PathLike):
    self._log = files.LineLog(path)
    self.whole = True
    self._lines: dict[int, list[bytes]] = {}
    self._recalled: dict[int, int] = {}  # by seed, decisions that were told
    try:
      for line in files.whole_lines(path):
        self._lines.setdefault(_read(line, f"{path}").seed, []).append(line)
    except Pi0RagError as error:
      _log.warning("%s", error)
      self.whole = False

  def recall(self, seed: int) -> Step | None:
    """Returns an episode's next decision, without its snapshot; None if it was not made yet."""
    lines, place = self._lines.get(seed, []), self._recalled.get(seed, 0)
    if place >= len(lines):
      return None
    self._recalled[seed] = place + 1
    entry = _read(lines[place], str(self._log.path))
    return Step(entry.tick, None, unpacked(entry.key), unpacked(entry.base), unpacked(entry.actions), entry.used,
                unpacked(entry.ids), unpacked(entry.weight), entry.missed)

  def note(self, steps: Mapping[int, Step]) -> None:
    """Writes down the next decision of some episodes, by their seeds."""
    lines = {seed: _written(seed, step) for seed, step in steps.items()}
    self._log.append(*lines.values(), durable=False)
    for seed, line in lines.items():
      self._lines.setdefault(seed, []).append(line)
      self._recalled[seed] = len(self._lines[seed])

  def sync(self) -> None:
    """Returns once everything that was noted is on disk."""
    self._log.append()

  def forget(self, seeds: Iterable[int]) -> None:
    """Gives up the decisions of episodes that are logged."""
    for seed in seeds:
      self._lines.pop(seed, None)
    left = sum(len(line) + 1 for lines in self._lines.values() for line in lines)
    if len(self._log) > max(LARGEST_BYTES, 2 * left):
      self._write_anew()

  def clear(self) -> None:
    """Gives up all decisions."""
    self._lines, self.whole = {}, True
    self._write_anew()

  def _write_anew(self) -> None:
    path, text = self._log.path, b"".join(line + b"\n" for lines in self._lines.values() for line in lines)
    self._log.close()
    files.write(path, lambda file: file.write(text))
    self._log = files.LineLog(path)

  def close(self) -> None:
    """Releases the file to other processes."""
    self._log.close()

  def __enter__(self) -> "Journal":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def _written(seed: int, step: Step) -> bytes:
  return msgspec.json.encode(_Entry(seed, step.tick, used=step.used, missed=step.missed_deadline, **arrays_of(step)))


def arrays_of(step: Step) -> dict[str, Array]:
  """Returns the arrays of a decision for a line."""
  arrays = {"key": step.key_E, "base": step.base_TA, "actions": step.actions_TA, "ids": step.ids_K,
            "weight": step.weight_K}
  return {name: packed(array) for name, array in arrays.items()}


def packed(array: np.ndarray) -> Array:
  """Returns an array for a line."""
  return Array(array.dtype.name, list(array.shape), array.tobytes())


def _read(line: bytes, where: str) -> _Entry:
  return schema.parse(line, _Entry, f"{where} is damaged")


def unpacked(array: Array) -> np.ndarray:
  """Returns the array of a line."""
  return np.frombuffer(array.data, array.dtype).reshape(array.shape)
