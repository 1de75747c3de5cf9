"""The two ways in which a jitted policy gets its neighbours, with equal results.

`callback_query`: the search is a `jax.pure_callback` inside the jitted function.
`OverlapQuery`: the search runs on the host while the device denoises.

A search is any object with `__call__(keys_BE) -> pytree of numpy arrays [B, ...]` and `empty(batch)`, the same
pytree with nothing found: a memory's neighbours, with whatever a policy adds to them.
"""

import concurrent.futures
import threading
import time
from typing import Any, Protocol

import jax
import numpy as np


class Search(Protocol):
  """What both ways of feeding run on the host."""

  def __call__(self, keys_BE: np.ndarray) -> Any: ...
  def empty(self, batch: int) -> Any: ...


def callback_query(search: Search):
  """Returns fn(keys_BE) -> the search's pytree, for use inside jit and vmap.

  Leading axes of the keys are kept. An error of the search surfaces from the jitted call (as jax's error, with
  the text). A program with a callback cannot be exported, and a callback must not be in one program with a
  collective.
  """

  def on_host(keys):
    keys = np.asarray(keys, np.float32)
    flat = search(keys.reshape(-1, keys.shape[-1]))
    return jax.tree.map(lambda array: array.reshape(*keys.shape[:-1], *array.shape[1:]), flat)

  def query(keys_BE):
    leading = keys_BE.shape[:-1]
    shape = lambda array: jax.ShapeDtypeStruct((*leading, *array.shape[1:]), array.dtype)  # noqa: E731
    return jax.pure_callback(on_host, jax.tree.map(shape, search.empty(1)), keys_BE, vmap_method="broadcast_all")

  return query


class OverlapQuery:
  """Searches while the device works: submit the key, dispatch the denoising, then take the result.

  With a deadline the search has a thread of its own, which can be left behind; without one the caller's does it, which
  would only wait otherwise.

  Args:
    deadline_s: from when the keys are there; a search that takes longer, or waits that long behind an earlier one, is
      counted in `deadline_misses` and gives the empty answer, so that the base action is used. None waits as long as
      it takes.
  """

  def __init__(self, search: Search, deadline_s: float | None = None):
    self.deadline_misses = 0
    self._find, self._deadline_s = search, deadline_s
    self._worker = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory-query")
    self._mutex = threading.Lock()
    self._late_error: BaseException | None = None

  def submit(self, keys_BE, rows: int | None = None) -> "Pending | Deferred":
    """Returns at once; whoever searches also waits for the keys if the device still computes them.

    Args:
      rows: only the first keys are searched with; None: all.
    Errors: that of an earlier search that failed after its deadline.
    """
    if self._deadline_s is None:
      return Deferred(self._find, keys_BE, rows)
    self._raise_late_error()
    began: concurrent.futures.Future[float] = concurrent.futures.Future()

    def find():
      keys = np.asarray(keys_BE)[:rows]
      began.set_result(time.monotonic())
      return self._find(keys)

    future = self._worker.submit(find)
    return Pending(self, self._deadline_s, future, began, keys_BE, rows)

  def close(self) -> None:
    """Ends the worker after its present search. Errors: that of a search that failed after its deadline."""
    self._worker.shutdown(wait=True, cancel_futures=True)
    self._raise_late_error()

  def __enter__(self) -> "OverlapQuery":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _missed(self, future: concurrent.futures.Future, batch: int):
    """Returns the empty answer, after counting a miss; a late error of the search is kept."""
    with self._mutex:
      self.deadline_misses += 1
    if not future.cancel():
      future.add_done_callback(self._note_late)
    return self._find.empty(batch)

  def _note_late(self, future: concurrent.futures.Future) -> None:
    if not future.cancelled() and future.exception() is not None:
      with self._mutex:
        self._late_error = future.exception()

  def _raise_late_error(self) -> None:
    with self._mutex:
      error, self._late_error = self._late_error, None
    if error is not None:
      raise error


class Deferred:
  """A search that is made when its result is taken. Made by `OverlapQuery.submit`."""

  missed = False

  def __init__(self, find: Search, keys_BE, rows: int | None):
    self._find, self._keys_BE, self._rows = find, keys_BE, rows

  def result(self):
    """Returns what was found. Errors: whatever the search raises."""
    return self._find(np.asarray(self._keys_BE)[:self._rows])


class Pending:
  """A search under way, with a deadline. Made by `OverlapQuery.submit`."""

  def __init__(self, owner: OverlapQuery, deadline_s: float, future: concurrent.futures.Future,
               began: concurrent.futures.Future[float], keys_BE, rows: int | None):
    self._owner, self._deadline_s, self._future, self._began = owner, deadline_s, future, began
    self._keys_BE, self._batch = keys_BE, np.shape(keys_BE)[0] if rows is None else rows
    self._result = None
    self.missed = False  # whether `result` came too late

  def done(self) -> bool:
    """Returns whether `result` would return at once."""
    return self._result is not None or self._future.done()

  def result(self):
    """Returns what was found, the empty answer if the deadline passed first; the same on every call.

    Errors: whatever the search raised.
    """
    if self._result is None:
      self._result = self._wait()
    return self._result

  def _wait(self):
    jax.block_until_ready(self._keys_BE)
    # The worker may be busy with an earlier search, which must not take up this one's time as well.
    began_s = self._began.result() if self._began.done() else time.monotonic()
    left_s = max(0.0, began_s + self._deadline_s - time.monotonic())
    finished, _ = concurrent.futures.wait([self._future], timeout=left_s)
    self.missed = not finished
    return self._owner._missed(self._future, self._batch) if self.missed else self._future.result()
