"""Which episodes are kept: files that say so, and the data set that is left.

Two files hold the same choice. Demo-SCORE's text has a line `path ep,ep,ep` per data set; the JSON has every score and
how the choice was made too. Episodes are numbered as the training's reader numbers those of the whole data set.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pi0rag_jax import files, schema
from pi0rag_jax.curation.views import EpisodesView, view
from pi0rag_jax.data.dataset import Dataset
from pi0rag_jax.errors import Pi0RagError

VERSION = 1
TEXT_SUFFIX = ".txt"


@dataclasses.dataclass(frozen=True)
class Selection:
  """What is kept of one data set of J episodes."""

  path: str  # of the data set
  scores_J: np.ndarray  # float64, nan where an episode has none
  kept_J: np.ndarray  # bool
  threshold: float
  rule: str  # that gave the threshold
  details: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what JSON can hold

  def __post_init__(self):
    if self.scores_J.shape != self.kept_J.shape or self.kept_J.dtype != bool:
      raise Pi0RagError(f"a selection of '{self.path}' has scores {self.scores_J.shape} and {self.kept_J.dtype}"
                        f"{self.kept_J.shape} of what is kept; expected a score and a truth value per episode")


def choose(dataset: Dataset, file: str | Path) -> EpisodesView:
  """Returns the episodes of a data set that a file of selections keeps; see `kept_by`."""
  return view(dataset, kept_by(file, dataset))


def fingerprint(selections: Sequence[Selection]) -> str:
  """Returns a short hash of what is kept; scores and thresholds do not matter."""
  kept = sorted((str(_resolved(each.path)), np.flatnonzero(each.kept_J).tolist()) for each in selections)
  return hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:12]


def kept_by(file: str | Path, dataset: Dataset) -> np.ndarray:
  """Returns bool[J], what a file of selections keeps of a data set.

  Args:
    file: as `write_json` or, with the suffix .txt, `write_text` makes it.
    dataset: with the path that the file knows it by.
  Raises:
    Pi0RagError: the file does not speak of the data set, or of another number of its episodes.
  """
  if Path(file).suffix != TEXT_SUFFIX:
    selections = {_resolved(selection.path): selection.kept_J for selection in read_json(file)}
    return _of(dataset, selections, file)
  episodes = _of(dataset, {_resolved(path): kept for path, kept in read_text(file).items()}, file)
  if episodes and not 0 <= min(episodes) <= max(episodes) < dataset.num_episodes:
    raise Pi0RagError(f"'{file}' keeps episodes {min(episodes)} to {max(episodes)} of '{dataset.path}', which has 0 to "
                      f"{dataset.num_episodes - 1}: select again")
  return np.isin(np.arange(dataset.num_episodes), episodes)


def write_text(path: str | Path, selections: Sequence[Selection]) -> None:
  """Writes Demo-SCORE's file: a line `path ep,ep,ep` per data set; one without a kept episode is left out."""
  kept = {each.path: np.flatnonzero(each.kept_J).tolist() for each in selections}
  lines = [f"{name} {','.join(map(str, numbers))}\n" for name, numbers in kept.items() if numbers]
  files.write_text(path, "".join(lines))


def read_text(path: str | Path) -> dict[str, tuple[int, ...]]:
  """Returns {path of a data set: its kept episodes} of a file in Demo-SCORE's form."""
  found = {}
  for number, line in enumerate(_read(path).splitlines(), start=1):
    if not line.strip():
      continue
    name, _, episodes = line.strip().rpartition(" ")
    try:
      kept = tuple(int(episode) for episode in episodes.split(","))
    except ValueError:
      kept = ()
    if not name or not kept or name in found:
      why = f"'{name}' came before" if name in found else "expected `path ep,ep,ep`"
      raise Pi0RagError(f"'{path}', line {number}: {line[:80]!r}; {why}")
    found[name] = kept
  return found


def write_json(path: str | Path, selections: Sequence[Selection]) -> None:
  """Writes every score, what is kept, and how that came about."""
  stored = [{
    "path": each.path, "rule": each.rule, "threshold": each.threshold, "details": dict(each.details),
    "kept": np.flatnonzero(each.kept_J).tolist(),
    "scores": [score if math.isfinite(score) else None for score in each.scores_J.tolist()],
  } for each in selections]
  try:
    files.write_json(path, {"version": VERSION, "selections": stored})
  except (TypeError, ValueError) as error:
    raise Pi0RagError(f"a selection holds what JSON cannot: {error}") from error


def read_json(path: str | Path) -> list[Selection]:
  """Returns the selections of a file that `write_json` wrote."""
  try:
    stored = schema.read(path, _Stored)
  except Pi0RagError as error:
    raise Pi0RagError(f"no selections ({error}); train.curate writes them") from error
  if stored.version != VERSION:
    raise Pi0RagError(f"the selection '{path}' has version {stored.version}, read is {VERSION}: select again")
  return [_from_json(entry, path) for entry in stored.selections]


def _from_json(entry: "_StoredSelection", path: str | Path) -> Selection:
  scores_J = np.array([math.nan if score is None else score for score in entry.scores], np.float64)
  if wrong := [episode for episode in entry.kept if not 0 <= episode < len(scores_J)]:
    raise Pi0RagError(f"'{path}' keeps episode {wrong[0]} of '{entry.path}', which has scores of 0 to "
                      f"{len(scores_J) - 1}")
  kept_J = np.isin(np.arange(len(scores_J)), entry.kept)
  return Selection(entry.path, scores_J, kept_J, entry.threshold, entry.rule, entry.details)


class _StoredSelection(msgspec.Struct, forbid_unknown_fields=True):
  """A selection as JSON has it."""

  path: str
  rule: str
  threshold: float
  details: dict[str, Any]
  kept: list[int]
  scores: list[float | None]


class _Stored(msgspec.Struct):
  version: int
  selections: list[_StoredSelection] = []


def _of(dataset: Dataset, by_path: Mapping[Path, Any], file: str | Path) -> Any:
  """Returns what a file says of a data set."""
  here = _resolved(dataset.path)
  if here not in by_path:
    known = ", ".join(f"'{path}'" for path in by_path) or "none"
    raise Pi0RagError(f"'{file}' keeps nothing of '{here}'; the data sets in it: {known}")
  return by_path[here]


def _resolved(path: str | Path) -> Path:
  return Path(path).resolve()


def _read(path: str | Path) -> str:
  try:
    return Path(path).read_text(encoding="utf8")
  except (OSError, ValueError) as error:
    raise Pi0RagError(f"the selection '{path}' cannot be read: {error}") from error
