"""What the memory holds: a record of one decision, and the header that all records of one memory share."""

import dataclasses
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pi0rag_jax.errors import Pi0RagError

# What is better, what was good enough, and what was done and failed.
CORRECTION, ANCHOR, FAILURE = "correction", "anchor", "failure"
KINDS = (CORRECTION, ANCHOR, FAILURE)
OUTCOMES = ("success", "failure")
SOURCES = ("expert", "human", "retry", "policy")
CHUNK_DTYPES = ("float16", "float32")
# Keys are searched in half precision; beyond this they would become infinite.
KEY_LIMIT = float(np.finfo(np.float16).max)
# Far beyond any policy; a damaged header must not make an index of terabytes.
SIZE_LIMIT = 1 << 20
STARTS = "'zero', 'draw:<seed>' or 'new'"
_START = re.compile(r"zero|new|draw:\d{1,19}")
# What the header's fields are to a user.
_WORDS = {
  "key_dim": "size of keys", "action_horizon": "length of chunks", "action_dim": "size of an action",
  "encoder": "key recipe", "policy": "policy", "chunk_dtype": "precision of chunks", "start": "start of the flow",
  "actions": "action space",
}  # fmt: skip


class DamagedError(Pi0RagError):
  """The memory's file or a record in it is not what was written."""


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
  """One decision: where it was taken (key), what the policy does there, and what is better or good enough.

  Arrays are copied and made read-only, provenance goes through JSON once. Errors: Pi0RagError for a wrong
  shape, a value that is not finite, an unknown kind, outcome or source, provenance that JSON cannot hold.
  """

  key: np.ndarray  # float32[E]
  base_chunk: np.ndarray  # float32[T, A], the policy's own chunk at fixed noise, in the units of the robot
  corrected_chunk: np.ndarray  # float32[T, A], the expert's chunk, or the one that was executed (anchor, failure)
  kind: str  # one of KINDS
  outcome: str  # one of OUTCOMES
  failure_kind: str = ""
  task: str = ""
  prompt: str = ""
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"source": "policy"})
  use_count: int = 0
  created: float = dataclasses.field(default_factory=time.time)  # s since 1970
  helped: float = 0.0  # episodes that succeeded in which it had a say, each by how much, see Memory.record_outcome
  hurt: float = 0.0  # the same of episodes that failed
  quarantine: str = ""  # why no search returns it, see Memory.quarantine; empty where searches do
  episode: int = 0  # the memory's count of episodes when it was added, or helped last; set by the memory

  def __post_init__(self):
    _set(self, "key", _checked_array("key", self.key, ndim=1))
    largest = np.abs(self.key).max()
    if largest > KEY_LIMIT:
      raise Pi0RagError(f"key has a value of magnitude {largest:.3g}, at most {KEY_LIMIT:g} is allowed")
    for name in ("base_chunk", "corrected_chunk"):
      _set(self, name, _checked_array(name, getattr(self, name), ndim=2))
    if self.base_chunk.shape != self.corrected_chunk.shape:
      raise Pi0RagError(
        f"base_chunk is {self.base_chunk.shape}, corrected_chunk {self.corrected_chunk.shape}: must be equal"
      )
    _check_choice("kind", self.kind, KINDS)
    _check_choice("outcome", self.outcome, OUTCOMES)
    for name in ("failure_kind", "task", "prompt", "quarantine"):
      _check_text(name, getattr(self, name))
    _set(self, "provenance", _checked_provenance(self.provenance))
    for name in ("use_count", "episode"):
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Pi0RagError(f"{name} is {value!r}, must be an integer of 0 or more")
    for name in ("helped", "hurt"):
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise Pi0RagError(f"{name} is {value!r}, must be a number of 0 or more")
    if not isinstance(self.created, (int, float)) or not math.isfinite(self.created):
      raise Pi0RagError(f"created is {self.created!r}, must be seconds since 1970")


def origin(record: Record) -> str:
  """Returns what tells the episode that a record comes from, in the world, on a robot or in a data set, from others."""
  return json.dumps([record.provenance.get(name) for name in ("data", "robot", "episode", "condition", "seed")])


@dataclasses.dataclass(frozen=True)
class Header:
  """What all records of one memory have in common; another value needs another memory."""

  key_dim: int
  action_horizon: int
  action_dim: int
  encoder: str  # name of the recipe that makes keys from observations
  policy: str  # fingerprint of the frozen policy whose chunks the records hold
  chunk_dtype: str = "float16"
  start: str = "zero"  # where the policy's flow starts, one of STARTS
  actions: str = ""  # fingerprint of the robot's action space; empty where it was not recorded

  def __post_init__(self):
    for name in ("key_dim", "action_horizon", "action_dim"):
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= SIZE_LIMIT:
        raise Pi0RagError(f"{name} is {value!r}, must be an integer of 1 or more, at most {SIZE_LIMIT}")
    for name in ("encoder", "policy"):
      if not isinstance(getattr(self, name), str) or not getattr(self, name):
        raise Pi0RagError(f"{name} is {getattr(self, name)!r}, must be a name that is not empty")
    _check_choice("chunk_dtype", self.chunk_dtype, CHUNK_DTYPES)
    if not isinstance(self.start, str) or not _START.fullmatch(self.start):
      raise Pi0RagError(f"start is {self.start!r}, allowed: {STARTS}")
    _check_text("actions", self.actions)

  @property
  def chunk_shape(self) -> tuple[int, int]:
    """(T, A) of every chunk."""
    return self.action_horizon, self.action_dim

  def require(self, wanted: "Header", where: str) -> None:
    """Raises Pi0RagError if `wanted` differs from this header, which the memory `where` has.

    An action space that either side does not name fits any.
    """
    different = []
    for name, words in _WORDS.items():
      ours, theirs = getattr(self, name), getattr(wanted, name)
      if ours != theirs and not (name == "actions" and "" in (ours, theirs)):
        different.append(f"{name} is {theirs!r}, the memory has {ours!r} (another {words})")
    if different:
      raise Pi0RagError(
        f"{where} was made for something else: {'; '.join(different)}. "
        "Use the configuration it was made with, or another directory for a new memory"
      )


def check_records(records: Sequence[Record], header: Header) -> None:
  """Raises Pi0RagError if a record's key or chunks do not have the header's sizes."""
  for i, record in enumerate(records):
    if not isinstance(record, Record):
      raise Pi0RagError(f"item {i} is a {type(record).__name__}, must be a Record")
    if record.key.shape != (header.key_dim,):
      raise Pi0RagError(
        f"record {i}: key has {record.key.size} dims, the memory holds {header.key_dim} "
        f"(encoder '{header.encoder}'): encode with that, or make a new memory"
      )
    if record.base_chunk.shape != header.chunk_shape:
      raise Pi0RagError(f"record {i}: chunks are {record.base_chunk.shape}, the memory holds {header.chunk_shape}")


def _set(record: Record, name: str, value) -> None:
  object.__setattr__(record, name, value)


def _check_choice(name: str, value, allowed: tuple[str, ...]) -> None:
  if value not in allowed:
    raise Pi0RagError(f"{name} is {value!r}, allowed: {', '.join(allowed)}")


def _check_text(name: str, value) -> None:
  if not isinstance(value, str):
    raise Pi0RagError(f"{name} is {value!r}, must be a string")
  try:
    value.encode()
  except UnicodeEncodeError:
    raise Pi0RagError(f"{name} is {value!r}, which UTF-8 cannot hold") from None


def _checked_array(name: str, value, *, ndim: int) -> np.ndarray:
  """Returns a read-only float32 copy with `ndim` axes, none of them empty, all finite."""
  try:
    array = np.array(value, np.float32)
  except (TypeError, ValueError) as error:
    raise Pi0RagError(f"{name} is not an array of numbers: {error}") from None
  if array.ndim != ndim or array.size == 0:
    raise Pi0RagError(f"{name} has shape {array.shape}, must have {ndim} axes, none of length 0")
  broken = np.count_nonzero(~np.isfinite(array))
  if broken:
    raise Pi0RagError(f"{name} has {broken} values that are not finite, allowed: none")
  array.setflags(write=False)
  return array


def _checked_provenance(provenance) -> dict[str, Any]:
  """Returns the provenance as JSON gives it back."""
  if not isinstance(provenance, Mapping):
    raise Pi0RagError(f"provenance is a {type(provenance).__name__}, must be a mapping with a 'source'")
  _check_choice("provenance['source']", provenance.get("source"), SOURCES)
  for name, value in provenance.items():
    if not isinstance(name, str):
      raise Pi0RagError(f"provenance has the name {name!r}, names must be strings")
    try:
      json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
      raise Pi0RagError(f"provenance['{name}'] is {value!r}, must be plain JSON: {error}") from None
  return json.loads(json.dumps(dict(provenance), allow_nan=False))
