"""A thread that hears of every commit and brings an index along; where the server is gone it waits for it to return."""

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.address import ServerAddress
from pi0rag_jax.memory.postgres import connection as connections
from pi0rag_jax.memory.postgres.connection import Connection

_log = logging.getLogger(__name__)
# So often it asks without having been told: a connection that died without a word is noticed.
_ASK_S = 5.0


class Follower:
  """Calls `catch_up` whenever something is told on a channel, after each reconnection, and every few seconds.

  Args:
    catch_up: brings the index along on this connection; returns how late that was, in s, None where nothing was new.
  """

  def __init__(self, address: ServerAddress, channel: str, catch_up: Callable[[Connection], float | None]):
    self._address, self._channel, self._catch_up = address, channel, catch_up
    self._stopped = threading.Event()
    self._woken, self._wake = os.pipe()
    self._lost_s: float | None = None  # when the connection was lost
    self._lag_s = 0.0
    self._thread = threading.Thread(target=self._run, name=f"follow {address.memory}", daemon=True)
    self._thread.start()

  def state(self) -> dict[str, Any]:
    """Returns whether the server is in reach, since when not, and how late the last change arrived."""
    lost_s = self._lost_s
    return {"connected": lost_s is None, "lag_ms": round(1000 * self._lag_s, 1),
            "away_s": 0.0 if lost_s is None else round(time.monotonic() - lost_s, 1)}

  def wake(self) -> None:
    """Has it look now."""
    os.write(self._wake, b".")

  def close(self) -> None:
    """Ends the thread."""
    if self._stopped.is_set():
      return
    self._stopped.set()
    self.wake()
    self._thread.join()
    os.close(self._wake)
    os.close(self._woken)

  def _run(self) -> None:
    patience = connections.Patience(float("inf"))
    while not self._stopped.is_set():
      try:
        with connections.connect(self._address) as connection, connections.reported(self._address):
          connection.execute(f"LISTEN {self._channel}")
          self._follow(connection)  # what was committed before the LISTEN first
          patience = connections.Patience(float("inf"))
          while self._wait(connection):
            self._follow(connection)
      except Pi0RagError as error:
        self._lose(error)
        self._stopped.wait(patience.next_s())
      except Exception:
        _log.exception("%s: following it failed; trying again", self._address)
        self._stopped.wait(patience.next_s())

  def _follow(self, connection: Connection) -> None:
    lag_s = self._catch_up(connection)
    if lag_s is not None:
      self._lag_s = lag_s
    if self._lost_s is not None:
      _log.warning("%s is back after %.1f s, and all that was written meanwhile is here", self._address,
                   time.monotonic() - self._lost_s)
      self._lost_s = None

  def _lose(self, error: Pi0RagError) -> None:
    """Says once that the server is gone."""
    if self._lost_s is None and not self._stopped.is_set():
      self._lost_s = time.monotonic()
      _log.warning("%s; going on with the records that are here, and trying again", error)

  def _wait(self, connection: Connection) -> bool:
    """Returns whether to look again, once something was told, time is up, or somebody wants it."""
    if list(connection.notifies(timeout=0)):  # told while something else was read
      return True
    select.select([connection, self._woken], [], [], _ASK_S)
    if self._stopped.is_set():
      return False
    while select.select([self._woken], [], [], 0)[0]:
      os.read(self._woken, 4096)
    list(connection.notifies(timeout=0))  # raises where the connection is gone
    return True
