"""Which episodes of a data set succeeded: by their rewards, a success flag, or a file of labels."""

import csv
import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax.data import checks
from pi0rag_jax.data.dataset import Dataset, EpisodeData
from pi0rag_jax.errors import Pi0RagError, cut, unknown_name

KINDS = ("reward", "flag", "file")
FRAMES = ("last", "any")
# Where readers of LeRobot, robomimic, RLDS and the project's own episodes find them.
REWARD_FIELDS = ("next.reward", "rewards", "reward")
FLAG_FIELDS = ("success", "next.success", "is_success", "next.is_success")
_SUCCESS, _FAILURE = ("1", "true", "success", "yes"), ("0", "false", "failure", "no")
_UNKNOWN = ("", "nan", "none", "null", "unknown")


@dataclasses.dataclass(frozen=True)
class Rule:
  """How success is read off an episode."""

  kind: str = "flag"  # of KINDS
  field: str = ""  # of the reward or the flag; '': the first of the usual ones that is there
  threshold: float = 0.0  # the reward has to be greater
  frames: str = "last"  # of FRAMES: which of them counts, where there is a number per frame
  path: str = ""  # of the file of labels, from the data set's folder on

  def __post_init__(self):
    if self.kind not in KINDS:
      raise unknown_name("rule for success", self.kind, KINDS)
    if self.frames not in FRAMES:
      raise unknown_name("choice of frames", self.frames, FRAMES)
    if (self.kind == "file") != bool(self.path):
      raise Pi0RagError(f"the rule '{self.kind}' has the path '{self.path}': 'file' needs one, the others have none")

  @classmethod
  def of(cls, rule: "Rule | str | Mapping[str, Any]") -> "Rule":
    """Returns a rule from its kind, or from its fields as a configuration has them."""
    if isinstance(rule, Rule):
      return rule
    fields: dict[str, Any] = {"kind": rule} if isinstance(rule, str) else dict(rule)
    known = {field.name for field in dataclasses.fields(cls)}
    for name in fields:
      if name not in known:
        raise unknown_name("field of a rule for success", name, known)
    return cls(**fields)


def success_of(dataset: Dataset, *, rule: Rule | str | Mapping[str, Any]) -> np.ndarray:
  """Returns float64[J]: 1 where an episode succeeded, 0 where it failed, nan where that is not known.

  Args:
    dataset: damaged episodes are not known, where it skips them.
    rule: a Rule, its kind, or its fields.
  Raises:
    Pi0RagError: no episode has what the rule asks for, or the file of labels does not fit the data set.
  """
  rule = Rule.of(rule)
  if rule.kind == "file":
    return _from_file(dataset, dataset.folder / rule.path)
  usual = REWARD_FIELDS if rule.kind == "reward" else FLAG_FIELDS
  names = (rule.field,) if rule.field else usual
  above = rule.threshold if rule.kind == "reward" else 0.5

  def judge(data: EpisodeData) -> float:
    values_F = _numbers(data, names)
    if values_F is None:
      return math.nan
    counted = values_F.max() if rule.frames == "any" else values_F[-1]
    return math.nan if np.isnan(counted) else float(counted > above)

  return _known(dataset, judge, what=f"a {rule.kind} ({', '.join(names)})")


def _known(dataset: Dataset, judge: Callable[[EpisodeData], float], *, what: str) -> np.ndarray:
  """Returns what `judge` says of every episode, or raises if it knows nothing of any."""
  found_J, fields = np.full(dataset.num_episodes, math.nan), {}
  for episode, data in dataset.iterate():
    found_J[episode] = judge(data)
    fields |= dict.fromkeys([*data.metadata, *data.extras])
  if np.isnan(found_J).all():
    raise Pi0RagError(f"no episode of '{dataset.path}' has {what}; its fields: {', '.join(fields) or 'none'}. Name one "
                      "in the rule's `field`, or give a file of labels")
  return found_J


def _numbers(data: EpisodeData, names: tuple[str, ...]) -> np.ndarray | None:
  """Returns the first field that is there, [n] numbers, None where there is none: n is 1 for a whole episode's.

  They keep their dtype: a threshold is compared as they were rounded.
  """
  for name in names:
    stored = data.metadata.get(name, data.extras.get(name))
    if stored is not None and np.size(stored):
      values = np.asarray(stored).reshape(-1)
      if values.dtype.kind not in "fiub":
        raise Pi0RagError(f"the field '{name}' is no number: {str(stored)[:60]!r}")
      return values
  return None


def _from_file(dataset: Dataset, path: Path) -> np.ndarray:
  """Returns the labels of a CSV or JSON file; `read_labels` says what is in it."""
  found_J = np.full(dataset.num_episodes, math.nan)
  for episode, label in read_labels(path).items():
    if not 0 <= episode < dataset.num_episodes:
      raise Pi0RagError(f"'{path}' labels episode {episode}, '{dataset.path}' has 0 to {dataset.num_episodes - 1}")
    found_J[episode] = label
  if np.isnan(found_J).all():
    raise Pi0RagError(f"'{path}' labels no episode: write a line `episode,label` for each, with the labels 1 and 0")
  return found_J


def read_labels(path: str | Path) -> dict[int, float]:
  """Returns {episode: 1, 0 or nan} of a file.

  Args:
    path: `.json`, a list of labels or an object {episode: label}; else CSV, lines `episode,label` below a header or
      without one, or one label per line. Labels are numbers, truth values or words such as success and failure.
  """
  path = Path(path)
  try:
    # JSON's own reader: what others write has NaN where they do not know.
    stored = checks.read_json(path) if path.suffix == ".json" else _csv_rows(path.read_text(encoding="utf8"))
  except (OSError, ValueError, csv.Error) as error:
    raise Pi0RagError(f"the labels '{path}' cannot be read: {error}") from error
  if not isinstance(stored, list | dict):
    raise Pi0RagError(f"'{path}' holds a {type(stored).__name__}; expected a list of labels, or {{episode: label}}")
  pairs = stored.items() if isinstance(stored, dict) else enumerate(stored)
  try:
    return {int(episode): _label(label) for episode, label in pairs}
  except ValueError as error:
    raise Pi0RagError(f"'{path}': {cut(str(error), 300)}") from error


def _csv_rows(text: str) -> list | dict:
  """Returns the labels of a CSV file, by episode where it names them."""
  rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
  if rows and len(rows[0]) > 1 and not rows[0][0].isdecimal():
    rows = rows[1:]
  if all(len(row) == 1 for row in rows):
    return [row[0] for row in rows]
  return {row[0]: row[-1] for row in rows}


def _label(value: Any) -> float:
  word = str(value).strip().lower()
  if word in _UNKNOWN:
    return math.nan
  if word in _SUCCESS + _FAILURE:
    return float(word in _SUCCESS)
  try:
    number = float(word)
  except ValueError:
    number = math.nan
  if number not in (0.0, 1.0):
    raise ValueError(f"the label '{cut(word)}' is neither 1 nor 0, nor one of {', '.join(_SUCCESS + _FAILURE)}")
  return number
