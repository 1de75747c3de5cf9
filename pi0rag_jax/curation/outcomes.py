"""How a policy's episodes ended, in a file of JSON lines that stays whole when the process is killed at any moment."""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pi0rag_jax.errors import Pi0RagError

SEED, OUTCOME = "seed", "outcome"


class OutcomeLog:
  """Outcomes by seed, of one policy in one place; the file keeps those of others too, and they are left alone."""

  def __init__(self, path: str | os.PathLike, facts: Mapping[str, Any]):
    """Reads what is there, without the end of a line that a kill cut off.

    Args:
      path: of the file, made where it is missing.
      facts: what decides an episode beside its seed, see `rollouts.facts`.
    Raises:
      Pi0RagError: another process writes the file, or a line of it is damaged.
    """
    self._path, self._facts = Path(path), dict(facts)
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._file = self._path.open("a+b")
    self._lock()
    self.outcomes = self._read()

  def append(self, seed: int, outcome: str, **details: Any) -> None:
    """Writes one line and returns once it is on the disk."""
    entry = {**self._facts, SEED: seed, OUTCOME: outcome, **details}
    self._file.write(f"{json.dumps(entry)}\n".encode())
    self._file.flush()
    os.fsync(self._file.fileno())
    self.outcomes[seed] = outcome

  def _lock(self) -> None:
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      self._file.close()
      raise Pi0RagError(f"'{self._path}' is being written by another process: wait for it, or use another --workdir"
                        ) from None

  def _read(self) -> dict[int, str]:
    """Returns the outcomes of these facts."""
    self._file.seek(0)
    stored = self._file.read()
    whole = stored[: stored.rfind(b"\n") + 1]
    self._file.truncate(len(whole))
    found = {}
    for number, line in enumerate(whole.splitlines(), start=1):
      try:
        entry = json.loads(line)
        if all(entry.get(name) == value for name, value in self._facts.items()):
          found[entry[SEED]] = entry[OUTCOME]
      except (ValueError, KeyError, AttributeError) as error:
        self._file.close()
        raise Pi0RagError(f"'{self._path}', line {number}, is no outcome of an episode ({error!r}): remove the line"
                          ) from error
    return found

  def __enter__(self) -> "OutcomeLog":
    return self

  def __exit__(self, *_) -> None:
    self._file.close()
