"""A world in a process of another interpreter, whose packages clash with ours: `{"python": "/venv/bin/python"}`.

Messages go over a socket: JSON in which every array is a reference, then the arrays' bytes. Nothing is unpickled, and
the other interpreter (`bridged.py`) needs no more than numpy and what its world needs. It ends with its end of the
socket.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import socket
import struct
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds.world import Progress, WorldConfig

ROOT = pathlib.Path(__file__).parents[2]
_LENGTHS = struct.Struct("<QQ")  # of the JSON and of the arrays' bytes
_LARGEST_BYTES = 2**31
_ARRAY, _PAIRS = "__array__", "__pairs__"
_CLOSING_S = 5.0


class BridgedWorld:
  """A World whose methods run in another interpreter; snapshots are of dicts, lists, arrays, numbers and text."""

  def __init__(self, config: WorldConfig, python: str):
    """Starts the interpreter and makes the world there.

    Errors: Pi0RagError where there is no such interpreter, and for what goes wrong there.
    """
    self._call = _Interpreter(python, config.timeout_s)
    try:
      self._call("make", _plain(config))
    except BaseException:
      self.close()
      raise

  def begin(self, seed: int) -> None:
    """See World."""
    self._call("begin", int(seed))

  def advance(self, actions_NA: np.ndarray) -> Progress:
    """See World."""
    return Progress(**self._call("advance", np.asarray(actions_NA)))

  def observe(self) -> dict[str, Any]:
    """See World."""
    return self._call("observe")

  def snapshot(self) -> Any:
    """See Rewinds."""
    return self._call("snapshot")

  def restore(self, snapshot: Any, *, fresh_clock: bool = False) -> None:
    """See Rewinds."""
    self._call("restore", snapshot, fresh_clock=fresh_clock)

  def plan(self, horizon: int) -> np.ndarray:
    """See Expert."""
    return self._call("plan", horizon)

  def more_time(self) -> None:
    """See Expert."""
    self._call("more_time")

  def things(self) -> np.ndarray:
    """See Tells."""
    return self._call("things")

  def film(self, size: int) -> np.ndarray:
    """See Films."""
    return self._call("film", size)

  def close(self) -> None:
    """Ends the process, by force where that takes too long."""
    self._call.close()


def require(config: WorldConfig, python: str) -> None:
  """As `registry.require`, in another interpreter; what was there once is not asked for again."""
  _require(json.dumps(_plain(config)), python, config.timeout_s)


@functools.cache
def _require(config: str, python: str, timeout_s: float) -> None:
  there = _Interpreter(python, timeout_s)
  try:
    there("require", json.loads(config))
  finally:
    there.close()


def _plain(config: WorldConfig) -> dict[str, Any]:
  """Returns a configuration as it is told to the interpreter that it asks for."""
  options = {name: value for name, value in config.options.items() if name != "python"}
  return {**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)}, "options": options}


class _Interpreter:
  """A process of another interpreter that carries out calls, one after the other."""

  def __init__(self, python: str, timeout_s: float):
    ours, theirs = socket.socketpair()
    self._socket, self._timeout_s = ours, timeout_s
    ours.settimeout(timeout_s)
    theirs.setblocking(True)  # whatever time limit sockets have here by default: rospy sets one
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
      # What a simulation prints is for its log, not for ours.
      self.process = subprocess.Popen(
        [os.path.expanduser(python), "-m", "pi0rag_jax.worlds.bridged", str(theirs.fileno())], env=environment,
        pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    except OSError as error:
      ours.close()
      raise Pi0RagError(f"no world can run in '{python}': {error}") from error
    finally:
      theirs.close()

  def __call__(self, method: str, *args, **kwargs) -> Any:
    """Returns what a method of the world there returns. Errors: Pi0RagError that says what went wrong there."""
    try:
      send(self._socket, {"method": method, "args": list(args), "kwargs": kwargs})
      answer = receive(self._socket)
    except TimeoutError as error:
      self.process.kill()
      raise Pi0RagError(f"the world's process gave no answer to '{method}' within {self._timeout_s:g} s") from error
    except (EOFError, OSError) as error:
      with contextlib.suppress(subprocess.TimeoutExpired):
        self.process.wait(_CLOSING_S)
      raise Pi0RagError(f"the world's process ended at '{method}' (exit code {self.process.poll()})") from error
    if answer["error"]:
      raise Pi0RagError(answer["error"])
    return answer["value"]

  def close(self) -> None:
    """See BridgedWorld."""
    self._socket.close()
    try:
      self.process.wait(_CLOSING_S)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()


def send(connection: socket.socket, value: Any) -> None:
  """Sends nested dicts, sequences, arrays, numbers, text and None."""
  arrays: list[np.ndarray] = []
  head = json.dumps(_packed(value, arrays)).encode()
  data = [array.tobytes() for array in arrays]
  connection.sendall(b"".join([_LENGTHS.pack(len(head), sum(map(len, data))), head, *data]))


def receive(connection: socket.socket) -> Any:
  """Returns what `send` sent. Errors: EOFError where the other end is gone, TimeoutError."""
  lengths = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size))
  if max(lengths) > _LARGEST_BYTES:
    raise Pi0RagError(f"a message of {max(lengths)} bytes; allowed: at most {_LARGEST_BYTES}")
  head, data = (_exactly(connection, length) for length in lengths)
  return _unpacked(json.loads(bytes(head)), data)


def _exactly(connection: socket.socket, count: int) -> bytearray:
  buffer = bytearray(count)
  view = memoryview(buffer)
  while view:
    got = connection.recv_into(view)
    if not got:
      raise EOFError
    view = view[got:]
  return buffer


def _packed(value: Any, arrays: list[np.ndarray]) -> Any:
  """Returns the value as JSON has it; its arrays are put into `arrays`."""
  if isinstance(value, (np.ndarray, np.generic)):
    array = np.asarray(value)
    if array.dtype.hasobject:
      raise Pi0RagError(f"an array of {array.dtype} cannot cross a bridge; allowed: numbers, booleans and text")
    start = sum(each.nbytes for each in arrays)
    arrays.append(array)
    return {_ARRAY: [array.dtype.str, list(array.shape), start]}
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
  if isinstance(value, Mapping):
    if not all(isinstance(key, str) for key in value):
      return {_PAIRS: [[_packed(key, arrays), _packed(each, arrays)] for key, each in value.items()]}
    return {key: _packed(each, arrays) for key, each in value.items()}
  if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
    return [_packed(each, arrays) for each in value]
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  raise Pi0RagError(f"a {type(value).__name__} cannot cross a bridge; allowed: dicts, lists, arrays, numbers and text")


def _unpacked(value: Any, data: bytearray) -> Any:
  if isinstance(value, list):
    return [_unpacked(each, data) for each in value]
  if not isinstance(value, dict):
    return value
  if value.keys() == {_ARRAY}:
    dtype, shape, start = value[_ARRAY]
    return np.frombuffer(data, dtype, count=int(np.prod(shape)), offset=start).reshape(shape)
  if value.keys() == {_PAIRS}:
    return {_unpacked(key, data): _unpacked(each, data) for key, each in value[_PAIRS]}
  return {key: _unpacked(each, data) for key, each in value.items()}
