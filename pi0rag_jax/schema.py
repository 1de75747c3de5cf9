"""Files of plain values are checked once, as they are read: against a type, before any work.

A type is whatever msgspec reads: a dataclass, a `msgspec.Struct`, `dict[str, list[float]]`. JSON's numbers are finite,
so that what was read holds no NaN. A dataclass takes no fields but its own.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pi0rag_jax.errors import Pi0RagError

Kind = TypeVar("Kind")
SHOWN = 400  # characters of a reason, in which names of the file are


def read(path: str | os.PathLike, kind: type[Kind]) -> Kind:
  """Returns the values of a JSON file. Errors: Pi0RagError that names the file, the entry and what is expected."""
  try:
    text = Path(path).read_bytes()
  except OSError as error:
    raise Pi0RagError(f"{path}: {error.strerror}") from error
  return parse(text, kind, str(path))


def parse(text: bytes | str, kind: type[Kind], where: str) -> Kind:
  """Returns the values of a JSON text; errors as of `read`."""
  try:
    if dataclasses.is_dataclass(kind):
      return convert(msgspec.json.decode(text), kind, where)
    return msgspec.json.decode(text, type=kind)
  except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
    raise _said(error, where) from error


def convert(values: Any, kind: type[Kind], where: str) -> Kind:
  """Returns plain values as a type; errors as of `read`."""
  if dataclasses.is_dataclass(kind) and isinstance(values, dict):
    names = [field.name for field in dataclasses.fields(kind)]
    if unknown := [name for name in values if name not in names]:
      raise Pi0RagError(f"{where}: unknown field {str(unknown[0])[:40]!r}, allowed: {', '.join(names)}")
  try:
    return msgspec.convert(values, kind)
  except (msgspec.MsgspecError, RecursionError) as error:
    raise _said(error, where) from error


def check_range(value: Any, low: float, high: float, where: str) -> None:
  """Raises Pi0RagError unless a value is a number from `low` to `high`, a whole one where both are."""
  whole = isinstance(low, int) and isinstance(high, int)
  fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and low <= value <= high
  if not fits:
    raise Pi0RagError(f"{where} is {value!r}; allowed: {'whole numbers' if whole else 'numbers'} from {low} to {high}")


def _said(error: Exception, where: str) -> Pi0RagError:
  text = str(error) or type(error).__name__
  if len(text) > SHOWN:
    text = f"{text[: SHOWN // 2]}...{text[-SHOWN // 2 :]}"
  return Pi0RagError(f"{where}: {text if text[1:2].isupper() else text[0].lower() + text[1:]}")
