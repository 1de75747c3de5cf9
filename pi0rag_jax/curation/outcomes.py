"""How a policy's episodes ended, a JSON line each: what an evaluation that goes on finds done is done."""

import json
import os
from collections.abc import Mapping
from typing import Any

import msgspec

from pi0rag_jax import files, schema
from pi0rag_jax.errors import Pi0RagError

SEED, OUTCOME = "seed", "outcome"


class _Outcome(msgspec.Struct):
  seed: int
  outcome: str


class OutcomeLog:
  """Outcomes by seed, of one policy in one place; the file keeps those of others too, and they are left alone."""

  def __init__(self, path: str | os.PathLike, facts: Mapping[str, Any]):
    """Reads what is there.

    Args:
      path: of the file, made where it is missing.
      facts: what decides an episode beside its seed, see `rollouts.facts`.
    Raises:
      Pi0RagError: another process writes the file, or a line of it is damaged.
    """
    self._facts = dict(facts)
    self._log = files.LineLog(path)
    self.outcomes: dict[int, str] = {}
    for number, line in enumerate(files.whole_lines(path), start=1):
      try:
        entry = schema.parse(line, dict[str, Any], "JSON")
        found = schema.convert(entry, _Outcome, "the outcome")
      except Pi0RagError as error:
        self._log.close()
        raise Pi0RagError(f"'{path}', line {number}, is no outcome of an episode ({error}): remove the line"
                          ) from error
      if all(entry.get(name) == value for name, value in self._facts.items()):
        self.outcomes[found.seed] = found.outcome

  def append(self, seed: int, outcome: str, **details: Any) -> None:
    """Writes one line and returns once it is on the disk."""
    self._log.append(json.dumps({**self._facts, SEED: seed, OUTCOME: outcome, **details}).encode())
    self.outcomes[seed] = outcome

  def __enter__(self) -> "OutcomeLog":
    return self

  def __exit__(self, *_) -> None:
    self._log.close()
