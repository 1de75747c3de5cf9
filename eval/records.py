"""One record per episode, in a `files.LineLog`: what a resumed sweep finds done is done."""

import dataclasses
import gzip
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from pi0rag_jax import files, schema
from pi0rag_jax.errors import Pi0RagError, cut

PHASES = ("stream", "eval")
OUTCOMES = ("success", "failure", "crashed")
PARTIAL = "partial"  # entry of `extra`: whether the task was partly done, where the world tells
STAGES = "stages"  # entry of `extra`: tasks that the policy did alone, in an episode of several one after the other
ALONE = "alone"  # entry of `extra`: how the policy's repetition of an episode without the memory ended

RecordKey: TypeAlias = tuple[str, str, str, str, str, int, int]
# Milliseconds of every decision (exact when pooled), or a summary of them: {"p50": , "p95": , "p99": }.
StageLatency: TypeAlias = Sequence[float] | Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class EpisodeRecord:
  """What one episode was, how it ended and what it cost.

  A crashed episode says nothing about the policy: every rate leaves it out, and reports count it apart.
  """

  phase: str  # 'stream': the memory learns; 'eval': it is frozen.
  policy: str
  task: str
  condition: str
  stream: str  # Identity of the stream whose memory was used, '' without one.
  seed: int
  index: int  # Position in the stream or in the evaluation, from 0.
  outcome: str  # One of OUTCOMES.
  failure_kind: str = ""  # 'collision', 'drop', 'miss', 'timeout', ...; '' unless it failed.
  steps: int = 0  # Control ticks.
  decisions: int = 0  # Policy calls.
  corrected: bool = False  # An expert took over.
  records_added: int = 0
  memory_records: int = 0  # In the memory once the episode is over.
  latency_ms: Mapping[str, StageLatency] = dataclasses.field(default_factory=dict)
  deadline_misses: int = 0
  abstained: int = 0  # Decisions with nothing in range.
  error: str = ""  # Traceback of a crashed episode.
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  stream_episodes: int = 0  # of the stream that had taught the memory when it was frozen; 0 while it learns
  came_from: str = ""  # Condition in which the stream's memory had learned before; '' began with an empty one.
  pooled: int = 0  # Streams whose memories were put together; 0: it is one stream's own.

  def __post_init__(self):
    if self.phase not in PHASES:
      raise Pi0RagError(f"episode phase is '{cut(self.phase)}', allowed: {', '.join(PHASES)}")
    if self.outcome not in OUTCOMES:
      raise Pi0RagError(f"episode outcome is '{cut(self.outcome)}', allowed: {', '.join(OUTCOMES)}")

  @property
  def crashed(self) -> bool:
    """True when the program, not the policy, ended the episode."""
    return self.outcome == "crashed"

  @property
  def policy_succeeded(self) -> bool:
    """True when the policy reached the goal alone: an episode that an expert finished is no success of it."""
    return self.outcome == "success" and not self.corrected

  @property
  def had_a_say(self) -> bool:
    """True when the memory had a say in an episode of a stream."""
    return self.extra.get("trust", 1.0) > 0 and self.abstained < self.decisions

  @property
  def worked_alone(self) -> bool | None:
    """Whether the policy succeeded when it repeated an episode without the memory; None where that is not known."""
    return {"success": True, "failure": False}.get(self.extra.get(ALONE, ""))


def key(record: EpisodeRecord) -> RecordKey:
  """Returns what makes an episode the same episode when a sweep is resumed."""
  return (record.phase, record.policy, record.task, record.condition, record.stream, record.stream_episodes,
          int(record.seed))


class RecordLog:
  """The episodes of one sweep: read once on opening, then appended to by this process alone.

  Raises Pi0RagError when another process writes the file, or when a line before the last is corrupt.
  """

  def __init__(self, path: str | os.PathLike):
    self._log = files.LineLog(path)
    try:
      self._records = {key(record): record for record in read_records(path)}
    except Pi0RagError:
      self._log.close()
      raise

  def append(self, record: EpisodeRecord) -> None:
    """Writes one line and returns once it is on disk; an episode already done is not written again."""
    if key(record) not in self._records:
      self._log.append(_to_line(record))
      self._records[key(record)] = record

  def done(self) -> set[RecordKey]:
    """Returns the keys of the episodes that need not run again, crashed ones included."""
    return set(self._records)

  @property
  def records(self) -> list[EpisodeRecord]:
    """Every episode once, in the order of the file."""
    return list(self._records.values())

  def close(self) -> None:
    """Releases the file to other processes."""
    self._log.close()

  def __enter__(self) -> "RecordLog":
    return self

  def __exit__(self, *_):
    self.close()


def read_records(path: str | os.PathLike) -> list[EpisodeRecord]:
  """Returns the episodes of a log, the first of each key, and leaves the file as it is (a torn end too).

  Args:
    path: of the log, or of a finished one that was packed (`.gz`).
  """
  records = {}
  packed = os.fspath(path).endswith(".gz")
  lines = gzip.decompress(pathlib.Path(path).read_bytes()).splitlines() if packed else files.whole_lines(path)
  for number, line in enumerate(lines, start=1):
    record = _from_line(line, f"{path}, line {number}")
    records.setdefault(key(record), record)
  return list(records.values())


def _from_line(line: bytes, where: str) -> EpisodeRecord:
  try:
    values = schema.parse(line, dict[str, Any], "JSON")
    if "came_from" not in values:  # of a sweep whose streams said so in their names
      values["came_from"] = str(values.get("stream", "")).partition("<")[2]
    return schema.convert(values, EpisodeRecord, "the record")
  except Pi0RagError as error:
    message = f"{where} is not an episode record ({error}): mend or delete this line, its episode runs again"
    raise Pi0RagError(message) from error


def _to_line(record: EpisodeRecord) -> bytes:
  try:
    text = json.dumps(dataclasses.asdict(record), default=_plain, allow_nan=False)
  except ValueError as error:
    raise Pi0RagError(f"the record of episode {key(record)} has a number that is not finite") from error
  return text.encode()


def _plain(value):
  """Returns numpy values as the numbers and lists that JSON has."""
  if isinstance(value, np.generic | np.ndarray):
    return value.tolist()
  raise TypeError(f"an episode record holds a {type(value).__name__}, which JSON cannot: {value!r}")
