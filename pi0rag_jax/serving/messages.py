"""The messages of openpi's policy server: msgpack in which numpy arrays keep their dtype and shape, byte for byte.

An array is the map {b"__ndarray__": True, b"data": bytes in C order, b"dtype": '<f4', b"shape": [2, 3]}, a numpy
scalar {b"__npgeneric__": True, b"data": value, b"dtype": '<f4'}; these keys are bytes, all others are strings.
Numpy's float64 and str_ are Python's float and str too, and are sent as those.

`unpack` reads two more dialects: msgpack-numpy's own ({b"nd": True, b"type": '<f4', b"shape", b"data"}; a scalar has
False and its bytes) and vla-eval's, which has openpi's keys as strings and pictures as {"__image__": True, "format":
"png", "data", "shape"}. A message is a stranger's: what it would become is bounded before anything is made of it.
"""

import dataclasses
import io
import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from pi0rag_jax.errors import Pi0RagError

EXTRA = "pip install 'pi0rag-jax[serving]'"

try:
  import msgpack
except ImportError as error:
  raise Pi0RagError(f"messages of a policy server need msgpack: {EXTRA}") from error

_ARRAY, _SCALAR, _DATA, _DTYPE, _SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"
# Others' bytes are pointers (objects), have no number that msgpack knows (complex, structures) or mean times.
_KINDS = "biufSU"
_DTYPE_NAME = re.compile(rf"[<>|=]?[{_KINDS}][0-9]{{1,6}}")
# Of a whole message: an observation has some dozens of values, and each may cost a hundred times its own bytes.
MAX_VALUES, MAX_DEPTH = 8192, 32
MAX_AXES, MAX_AXIS = 32, 1 << 24  # numpy's own limit; elements
# Of the pictures of a message, uncompressed.
MAX_PICTURE_BYTES = 1 << 24
_PICTURE_FORMATS = ("JPEG", "PNG")


@dataclasses.dataclass(frozen=True)
class Later:
  """An answer that waits for a disk: `slow` is for another thread than the policy's, `then` for the policy's again."""

  slow: Callable[[], Mapping]
  then: Callable[[], object] = lambda: None  # once `slow` is done

  def result(self) -> Mapping:
    """Returns the answer, where one thread does everything."""
    answer = self.slow()
    self.then()
    return answer


def pack(message) -> bytes:
  """Returns the bytes of a message: dicts, lists, numbers, texts, bytes, None, numpy arrays and scalars.

  Errors: Pi0RagError for anything else, such as arrays of objects, of complex numbers or of jax.
  """
  try:
    return msgpack.Packer(default=_encode).pack(message)
  except ValueError as error:  # nested too deeply, or a text with lone surrogates
    raise Pi0RagError(f"the message cannot be packed: {error}") from error


def unpack(data: bytes) -> Any:
  """Returns the message of `pack`'s bytes, or of another dialect's. Its arrays are views of them, read-only.

  Errors: Pi0RagError for bytes that are no whole message, for text, and for what no observation is like.
  """
  if not isinstance(data, bytes | bytearray | memoryview):
    raise Pi0RagError(f"a bytes-like object is required, not '{type(data).__name__}': a message is msgpack, sent as a "
                      "binary frame")
  try:
    _check_structure(data)
    return msgpack.unpackb(data, object_hook=_Decoder())
  except (ValueError, msgpack.UnpackException) as error:
    reason = str(error) or type(error).__name__
    raise Pi0RagError(f"{len(data)} bytes are no whole msgpack message: {reason}") from error


def _check_structure(data: bytes) -> None:
  """Raises ValueError for a message that is cut, or has too many values, or too deep ones.

  msgpack makes room for as many values as a map or list announces, however short the message is.
  """
  values, at = 1, 0
  open_: list[int] = [1]  # how many values each map or list around this place still wants
  while open_:
    if not open_[-1]:
      open_.pop()
      continue
    open_[-1] -= 1
    at, inside = _skip(data, at)
    values += inside
    if values > MAX_VALUES or len(open_) > MAX_DEPTH:
      raise ValueError(f"more than {MAX_VALUES} values or {MAX_DEPTH} levels; send numbers as arrays")
    open_.append(inside)


def _skip(data: bytes, at: int) -> tuple[int, int]:
  """Returns (where the value at a place ends, how many values follow within it); those of a map are two each."""
  code = data[at] if at < len(data) else -1
  if 0 <= code <= 0x7F or code >= 0xE0 or code in (0xC0, 0xC2, 0xC3):  # small integers, None, booleans
    return at + 1, 0
  if 0x80 <= code <= 0x9F:  # small maps and lists
    return at + 1, (code & 0x0F) * (2 if code < 0x90 else 1)
  if 0xA0 <= code <= 0xBF:  # short texts
    return _within(data, at + 1 + (code & 0x1F)), 0
  if code in _NUMBERS:
    return _within(data, at + 1 + _NUMBERS[code]), 0
  if code not in _SIZED:
    raise ValueError("incomplete input" if code < 0 else f"FormatError: unknown code {code:#x}")
  width, extra, per_item = _SIZED[code]
  start = _within(data, at + 1 + width)
  size = int.from_bytes(data[at + 1 : start], "big")
  return (start, size * per_item) if per_item else (_within(data, start + extra + size), 0)


# https://github.com/msgpack/msgpack/blob/master/spec.md: bytes behind the codes of numbers and small extensions;
# (bytes of the size, more bytes behind it, values per item: 0 for bytes and texts) of what has a size.
_NUMBERS = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
            0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}
_SIZED = {0xC4: (1, 0, 0), 0xC5: (2, 0, 0), 0xC6: (4, 0, 0), 0xC7: (1, 1, 0), 0xC8: (2, 1, 0), 0xC9: (4, 1, 0),
          0xD9: (1, 0, 0), 0xDA: (2, 0, 0), 0xDB: (4, 0, 0), 0xDC: (2, 0, 1), 0xDD: (4, 0, 1), 0xDE: (2, 0, 2),
          0xDF: (4, 0, 2)}


def _within(data: bytes, end: int) -> int:
  if end > len(data):
    raise ValueError("incomplete input")
  return end


def _encode(value) -> dict:
  """Returns the map of what msgpack does not know."""
  if isinstance(value, np.ndarray | np.generic):
    if value.dtype.kind not in _KINDS:
      raise Pi0RagError(f"Unsupported dtype: {value.dtype}; allowed: numbers, bool and text")
    if isinstance(value, np.generic):
      return {_SCALAR: True, _DATA: value.item(), _DTYPE: value.dtype.str}
    return {_ARRAY: True, _DATA: value.tobytes(), _DTYPE: value.dtype.str, _SHAPE: value.shape}
  if isinstance(value, int):
    raise Pi0RagError(f"{value} cannot be sent: an integer has at most 64 bits")
  kind = type(value)
  raise Pi0RagError(f"a {kind.__module__}.{kind.__qualname__} cannot be sent: make it a numpy array, number, text, "
                    "list or dict")


class _Decoder:
  """Turns the maps of one message into what they stand for: an array, a scalar, a picture, or themselves."""

  def __init__(self):
    self._picture_bytes = 0

  def __call__(self, found: dict) -> Any:
    entries = {name.decode("latin1") if isinstance(name, bytes) else name: value for name, value in found.items()}
    reader = next((reader for mark, reader in self._READERS.items() if mark in entries), None)
    if reader is None or ("nd" in entries and not {"type", "data"} <= entries.keys()):
      return found
    try:
      return reader(self, entries)
    except KeyError as error:
      raise Pi0RagError(f"an array of the message has the keys {shown(sorted(entries))} and no {error}") from error
    except (TypeError, ValueError, OverflowError, ArithmeticError, OSError, SyntaxError) as error:
      raise Pi0RagError(f"an array of the message is broken: {shown(error)}") from error

  def _openpi_array(self, entries: dict) -> np.ndarray:
    return _array(entries["data"], _dtype(entries["dtype"]), entries["shape"])

  def _openpi_scalar(self, entries: dict) -> Any:
    value = entries["data"]
    if not isinstance(value, bool | int | float | str | bytes):
      raise TypeError(f"a scalar is a {type(value).__name__}")
    return np.array(value, _dtype(entries["dtype"]))[()]

  def _msgpack_numpy(self, entries: dict) -> Any:
    dtype = _dtype(entries["type"])
    return _array(entries["data"], dtype, entries["shape"]) if entries["nd"] else _array(entries["data"], dtype, [])[()]

  def _picture(self, entries: dict) -> np.ndarray:
    if entries["format"] == "raw":
      return self._openpi_array(entries)
    with Image.open(io.BytesIO(entries["data"]), formats=_PICTURE_FORMATS) as picture:
      self._picture_bytes += picture.width * picture.height * len(picture.getbands())
      if self._picture_bytes > MAX_PICTURE_BYTES:
        raise ValueError(f"pictures of more than {MAX_PICTURE_BYTES} bytes, uncompressed")
      return np.asarray(picture)

  _READERS = {"__ndarray__": _openpi_array, "__npgeneric__": _openpi_scalar, "__image__": _picture,
              "nd": _msgpack_numpy}


def _array(data: bytes, dtype: np.dtype, shape: list[int]) -> np.ndarray:
  """Returns the read-only array of some bytes; ValueError if they are not as many as the shape says."""
  if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(
      type(size) is int and 0 <= size <= MAX_AXIS for size in shape):
    raise ValueError(f"shape {shown(shape)}; allowed: at most {MAX_AXES} axes of 0 to {MAX_AXIS}")
  needed = math.prod(shape) * dtype.itemsize
  if not isinstance(data, bytes) or len(data) != needed:
    size = len(data) if isinstance(data, bytes) else "none"
    raise ValueError(f"shape {shape} of dtype {dtype.str} is {needed} bytes, it has {size}")
  if dtype.kind == "U" and np.frombuffer(data, f"{dtype.str[0]}u4").max(initial=0) > sys.maxunicode:
    raise ValueError("a text has characters beyond Unicode")
  return np.ndarray(shape=shape, dtype=dtype, buffer=data)


def _dtype(name) -> np.dtype:
  """Returns the dtype of a name that `pack` writes."""
  if not isinstance(name, str) or not _DTYPE_NAME.fullmatch(name):
    raise Pi0RagError(f"Unsupported dtype: {shown(repr(name))}; allowed: numbers, bool and text, such as '<f4'")
  try:
    dtype = np.dtype(name)
  except (TypeError, ValueError) as error:
    raise Pi0RagError(f"an array of the message has the unknown dtype {name!r}") from error
  if not dtype.itemsize:
    raise Pi0RagError(f"an array of the message has the dtype {name!r}, whose elements have no bytes")
  return dtype


def shown(value: Any, length: int = 300) -> str:
  """Returns a stranger's text in one line for logs and answers: cut, without control characters and our paths."""
  text = value if isinstance(value, str) else repr(value) if not isinstance(value, Exception) else str(value)
  cut = text[: 4 * length]
  line = _PATH.sub("<path>", "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut))
  return line if len(line) <= length and len(cut) == len(text) else f"{line[:length]}..."


# An absolute path, or one below the home folder.
_PATH = re.compile(r"(?<![\w.:/<~])~?(?:/[\w.+@-]+)+/?")
