"""The messages of openpi's policy server: msgpack in which numpy arrays keep their dtype and shape, byte for byte.

An array is the map {b"__ndarray__": True, b"data": bytes in C order, b"dtype": '<f4', b"shape": [2, 3]}, a numpy
scalar {b"__npgeneric__": True, b"data": value, b"dtype": '<f4'}; these keys are bytes, all others are strings.
Numpy's float64 and str_ are Python's float and str too, and are sent as those.
"""

import math
from typing import Any

import numpy as np

from pi0rag_jax.errors import Pi0RagError

EXTRA = "pip install 'pi0rag-jax[serving]'"

try:
  import msgpack
except ImportError as error:
  raise Pi0RagError(f"messages of a policy server need msgpack: {EXTRA}") from error

_ARRAY, _SCALAR, _DATA, _DTYPE, _SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"
# Their bytes are pointers (objects), or have no number that msgpack knows (complex, structures).
_REFUSED_KINDS = "VOc"


def pack(message) -> bytes:
  """Returns the bytes of a message: dicts, lists, numbers, texts, bytes, None, numpy arrays and scalars.

  Errors: Pi0RagError for anything else, such as arrays of objects, of complex numbers or of jax.
  """
  try:
    return msgpack.Packer(default=_encode).pack(message)
  except ValueError as error:  # nested too deeply, or a text with lone surrogates
    raise Pi0RagError(f"the message cannot be packed: {error}") from error


def unpack(data: bytes) -> Any:
  """Returns the message of `pack`'s bytes. Its arrays are views of them, read-only.

  Errors: Pi0RagError for bytes that are no whole message, and for text.
  """
  if not isinstance(data, bytes | bytearray | memoryview):
    raise Pi0RagError(f"a bytes-like object is required, not '{type(data).__name__}': a message is msgpack, sent as a "
                      "binary frame")
  try:
    return msgpack.unpackb(data, object_hook=_decode)
  except (ValueError, msgpack.UnpackException) as error:
    reason = str(error) or type(error).__name__
    raise Pi0RagError(f"{len(data)} bytes are no whole msgpack message: {reason}") from error


def _encode(value) -> dict:
  """Returns the map of what msgpack does not know."""
  if isinstance(value, np.ndarray | np.generic):
    if value.dtype.kind in _REFUSED_KINDS:
      raise Pi0RagError(f"Unsupported dtype: {value.dtype}; allowed: numbers, bool and text")
    if isinstance(value, np.generic):
      return {_SCALAR: True, _DATA: value.item(), _DTYPE: value.dtype.str}
    return {_ARRAY: True, _DATA: value.tobytes(), _DTYPE: value.dtype.str, _SHAPE: value.shape}
  if isinstance(value, int):
    raise Pi0RagError(f"{value} cannot be sent: an integer has at most 64 bits")
  kind = type(value)
  raise Pi0RagError(f"a {kind.__module__}.{kind.__qualname__} cannot be sent: make it a numpy array, number, text, "
                    "list or dict")


def _decode(found: dict) -> Any:
  """Returns what a map stands for: an array, a scalar, or itself."""
  if _ARRAY not in found and _SCALAR not in found:
    return found
  wanted = {_ARRAY, _DATA, _DTYPE, _SHAPE} if _ARRAY in found else {_SCALAR, _DATA, _DTYPE}
  if found.keys() != wanted:
    raise Pi0RagError(f"an array of the message has the keys {sorted(map(str, found))}; expected "
                      f"{sorted(map(str, wanted))}")
  dtype = _dtype(found[_DTYPE])
  try:
    if _SCALAR in found:
      return dtype.type(found[_DATA])
    return _array(found[_DATA], dtype, found[_SHAPE])
  except (TypeError, ValueError, OverflowError) as error:
    raise Pi0RagError(f"an array of the message is broken: {error}") from error


def _array(data: bytes, dtype: np.dtype, shape: list[int]) -> np.ndarray:
  """Returns the read-only array of some bytes; ValueError if they are not as many as the shape says."""
  needed = math.prod(shape) * dtype.itemsize
  if min(shape, default=0) < 0 or len(data) != needed:
    raise ValueError(f"shape {shape} of dtype {dtype.str} is {needed} bytes, it has {len(data)}")
  return np.ndarray(shape=shape, dtype=dtype, buffer=data)


def _dtype(name) -> np.dtype:
  """Returns the dtype of a name that `pack` writes."""
  try:
    dtype = np.dtype(name)
  except (TypeError, ValueError, SyntaxError) as error:
    raise Pi0RagError(f"an array of the message has the unknown dtype {name!r}") from error
  if not isinstance(name, str) or dtype.kind in _REFUSED_KINDS:
    raise Pi0RagError(f"Unsupported dtype: {name!r}; allowed: numbers, bool and text, such as '<f4'")
  return dtype
