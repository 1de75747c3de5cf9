"""The two ways in which a jitted policy gets its neighbours, with equal results.

`callback_query`: the search is a `jax.pure_callback` inside the jitted function.
`OverlapQuery`: the search runs on a host thread while the device denoises.
"""

import concurrent.futures
import threading
import time
from typing import Any

import jax
import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.neighbours import Neighbours

_FIELDS = ("ids_BK", "distances_BK", "base_BKTA", "corrected_BKTA", "is_correction_BK", "mask_BK")
# So that neighbours pass in and out of jitted functions.
jax.tree_util.register_dataclass(Neighbours, data_fields=_FIELDS, meta_fields=())


def callback_query(memory: Memory, k: int, *, task: str | None = None, anchors: bool = True):
  """Returns fn(keys_BE) -> Neighbours of arrays, for use inside jit and vmap.

  Leading axes of the keys are kept. Ids are int32 unless jax runs with 64 bits. An error of the search
  surfaces from the jitted call (as jax's error, with the text). A program with a callback cannot be exported.
  """

  def search(keys) -> Neighbours:
    keys = np.asarray(keys, np.float32)
    flat = memory.query(keys.reshape(-1, keys.shape[-1]), k, task=task, anchors=anchors)
    shaped = {name: _unflatten(getattr(flat, name), keys.shape[:-1]) for name in _FIELDS}
    shaped["ids_BK"] = _as_jax_ids(shaped["ids_BK"])
    return Neighbours(**shaped)

  def query(keys_BE) -> Neighbours:
    shapes = _result_shapes(memory, keys_BE.shape[:-1], k)
    return jax.pure_callback(search, shapes, keys_BE, vmap_method="broadcast_all")

  return query


class OverlapQuery:
  """Searches on one worker thread: submit the key, dispatch the denoising, then take the result.

  Args:
    deadline_s: how long after `submit` a result is waited for; a search that is not done by then is counted in
      `deadline_misses` and gives neighbours that are all masked, so that the base action is used. None waits
      as long as it takes.
  """

  def __init__(self, memory: Memory, k: int, deadline_s: float | None = None, *, task: str | None = None, anchors=True):
    self.deadline_misses = 0
    self._memory, self._k, self._deadline_s = memory, k, deadline_s
    self._options = {"task": task, "anchors": anchors}
    self._worker = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory-query")
    self._mutex = threading.Lock()
    self._late_error: BaseException | None = None

  def submit(self, keys_BE) -> "PendingNeighbours":
    """Returns at once; the worker also waits for the keys if the device still computes them.

    Errors: that of an earlier search that failed after its deadline.
    """
    self._raise_late_error()
    future = self._worker.submit(self._search, keys_BE)
    return PendingNeighbours(self, future, np.shape(keys_BE)[0], time.monotonic())

  def close(self) -> None:
    """Ends the worker after its present search. Errors: that of a search that failed after its deadline."""
    self._worker.shutdown(wait=True, cancel_futures=True)
    self._raise_late_error()

  def __enter__(self) -> "OverlapQuery":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _search(self, keys_BE) -> Neighbours:
    return self._memory.query(np.asarray(keys_BE), self._k, **self._options)

  def _missed(self, future: concurrent.futures.Future, batch: int) -> Neighbours:
    """Returns neighbours that are all masked, after counting a miss; a late error of the search is kept."""
    with self._mutex:
      self.deadline_misses += 1
    if not future.cancel():
      future.add_done_callback(self._note_late)
    return Neighbours.empty(batch, self._k, self._memory.header.chunk_shape)

  def _note_late(self, future: concurrent.futures.Future) -> None:
    if not future.cancelled() and future.exception() is not None:
      with self._mutex:
        self._late_error = future.exception()

  def _raise_late_error(self) -> None:
    with self._mutex:
      error, self._late_error = self._late_error, None
    if error is not None:
      raise error


class PendingNeighbours:
  """A search under way. Made by `OverlapQuery.submit`."""

  def __init__(self, owner: OverlapQuery, future: concurrent.futures.Future, batch: int, submitted_s: float):
    self._owner, self._future, self._batch, self._submitted_s = owner, future, batch, submitted_s
    self._result: Neighbours | None = None

  def done(self) -> bool:
    """Returns whether `result` would return at once."""
    return self._result is not None or self._future.done()

  def result(self) -> Neighbours:
    """Returns the neighbours, all masked if the deadline passed first; the same ones on every call.

    Errors: whatever the search raised.
    """
    if self._result is None:
      self._result = self._wait()
    return self._result

  def _wait(self) -> Neighbours:
    deadline_s = self._owner._deadline_s
    left_s = None if deadline_s is None else max(0.0, self._submitted_s + deadline_s - time.monotonic())
    finished, _ = concurrent.futures.wait([self._future], timeout=left_s)
    if not finished:
      return self._owner._missed(self._future, self._batch)
    return self._future.result()


def _result_shapes(memory: Memory, leading: tuple[int, ...], k: int) -> Neighbours:
  """Returns the shapes and dtypes of a query's result."""
  one = Neighbours.empty(1, k, memory.header.chunk_shape)
  shapes: dict[str, Any] = {}
  for name in _FIELDS:
    array = getattr(one, name)
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    shapes[name] = jax.ShapeDtypeStruct((*leading, *array.shape[1:]), dtype)
  return Neighbours(**shapes)


def _unflatten(array: np.ndarray, leading: tuple[int, ...]) -> np.ndarray:
  return array.reshape(*leading, *array.shape[1:])


def _as_jax_ids(ids: np.ndarray) -> np.ndarray:
  """Returns ids in jax's integer dtype. Errors: Pi0RagError for ids that 32 bits cannot hold."""
  dtype = jax.dtypes.canonicalize_dtype(np.int64)
  if ids.size and ids.max() > np.iinfo(dtype).max:
    raise Pi0RagError(f"id {ids.max()} does not fit {dtype}: set jax_enable_x64, or export and import")
  return ids.astype(dtype)
