"""Values in files that others wrote, checked before anything is done with them; every error names file and field."""

import json
import math
import numbers
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pi0rag_jax import lfs
from pi0rag_jax.errors import Pi0RagError

MAX_JSON_BYTES = 64 * 2**20
MAX_INDEX = 10**9
MAX_FRAMES = 10**7  # of an episode: 55 hours at 50 Hz
MAX_FPS = 10_000.0
MAX_NUMBERS = 2**28  # per frame
_FIELD = re.compile(r"\{(\w+)(?::0?(\d{1,2})d)?\}")
_SHOWN = 80


def read_json(file: Path) -> Any:
  """Returns what a JSON file holds.

  Raises:
    Pi0RagError: it is missing, too large, a git-lfs pointer, or no JSON.
  """
  try:
    if file.stat().st_size > MAX_JSON_BYTES:
      raise Pi0RagError(f"'{file}' has {file.stat().st_size} bytes, read are up to {MAX_JSON_BYTES}")
    return json.loads(file.read_text("utf8"))
  except FileNotFoundError as error:
    raise Pi0RagError(f"'{file}' is missing") from error
  except (OSError, ValueError, RecursionError) as error:
    raise Pi0RagError(f"'{file}' cannot be read: {lfs.reason(file, error)}") from error


def shown(value: Any) -> str:
  """Returns a value for a message, cut."""
  if isinstance(value, int) and value.bit_length() > 4 * _SHOWN:
    return f"a number of {value.bit_length()} bits"
  text = repr(value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value)
  return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def refused(where: str, value: Any, allowed: str) -> Pi0RagError:
  """Returns the error for a value that is not allowed."""
  seen = "is missing" if value is None else f"is {shown(value)}"
  return Pi0RagError(f"{where} {seen}, allowed: {allowed}")


def integer(value: Any, where: str, *, low: int = 0, high: int = MAX_INDEX) -> int:
  """Returns a whole number; those in texts and whole floats count."""
  number: Any = int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,18}", value) else value
  if not _is_number(number) or not low <= number <= high or number != int(number):
    raise refused(where, value, f"whole numbers from {low} to {high}")
  return int(number)


def number(value: Any, where: str, *, low: float = -math.inf, high: float = math.inf) -> float:
  """Returns a finite number above `low` and not above `high`."""
  if not _is_number(value) or not math.isfinite(value) or not low < value <= high:
    raise refused(where, value, f"finite numbers above {low:g}, up to {high:g}")
  return float(value)


def _is_number(value: Any) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def text(value: Any, where: str) -> str:
  """Returns a text."""
  if not isinstance(value, str):
    raise refused(where, value, "a text")
  return value


def as_text(value: Any, name: str) -> str:
  """Returns a text, decoded."""
  if isinstance(value, bytes):
    try:
      return value.decode("utf8")
    except UnicodeDecodeError:
      raise ValueError(f"'{name}' holds {value[:20]!r}, no text in UTF-8") from None
  if not isinstance(value, str):
    raise ValueError(f"'{name}' holds {shown(value)}, no text")
  return value


def mapping(value: Any, where: str) -> Mapping[str, Any]:
  """Returns a mapping."""
  if not isinstance(value, Mapping):
    raise refused(where, value, "names with values")
  return value


def shape(value: Any, where: str) -> tuple[int, ...]:
  """Returns a shape of one frame's value; -1 stands for a size that varies."""
  if not isinstance(value, list | tuple) or len(value) > 8:
    raise refused(where, value, "a list of up to 8 sizes")
  if any(isinstance(size, str) for size in value):
    value = [int(size) if isinstance(size, str) and re.fullmatch(r"-?\d{1,18}", size) else size for size in value]
  sizes = tuple(integer(size, where, low=-1) for size in value)
  if math.prod(map(abs, sizes)) > MAX_NUMBERS:
    raise refused(where, list(sizes), f"up to {MAX_NUMBERS} numbers")
  return sizes


def inside(root: Path, relative: str, where: str) -> Path:
  """Returns a path below `root`; symbolic links are followed, as the caches of hubs need.

  Raises:
    Pi0RagError: it leaves the folder.
  """
  path = PurePosixPath(os.path.normpath(relative))
  if path.is_absolute() or ".." in path.parts or "\0" in relative:
    raise refused(where, relative, f"paths within '{root}'")
  return root / path


def expand(root: Path, template: Any, where: str, **values: Any) -> Path:
  """Returns the path that a template such as `data/chunk-{chunk:03d}/{key}.mp4` stands for.

  Python's own formatting is not used: a width of theirs could ask for gigabytes, and an attribute for anything.

  Args:
    root: the data set's folder, which the path stays in.
    template: theirs.
    where: file and field, for messages.
    values: texts and whole numbers by name.
  """

  def fill(match: re.Match) -> str:
    name, width = match.groups()
    if name not in values or (width and not isinstance(values[name], int)):
      raise refused(where, template, f"the fields {', '.join(values)}, such as {{{next(iter(values))}:06d}}")
    return str(values[name]).rjust(int(width or 0), "0")

  if set("{}") & set(re.sub(_FIELD, "", text(template, where))):
    raise refused(where, template, "fields such as {episode_index:06d}")
  return inside(root, re.sub(_FIELD, fill, template), where)
