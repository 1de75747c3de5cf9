"""Connections to a PostgreSQL server, and what its errors mean to a user."""

import contextlib
import logging
import random
import time
from collections.abc import Iterator
from typing import Any

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.address import ServerAddress
from pi0rag_jax.memory.schema import one_line
from pi0rag_jax.memory.store import UnreachableError

EXTRA = "a memory on a server needs psycopg and alembic: pip install 'pi0rag-jax[postgres]'"

try:
  import psycopg
  from psycopg import conninfo
except ImportError:
  raise Pi0RagError(EXTRA) from None

# A lost connection is told by us, once.
logging.getLogger("psycopg").setLevel(logging.ERROR)
# psycopg's, whose queries must be literals to type checkers; ours are put together of literals.
Connection = Any
# Of libpq, where the address says nothing else: a server that vanished is noticed within seconds.
_DEFAULTS = {"connect_timeout": "3", "application_name": "pi0rag", "keepalives_idle": "5", "keepalives_interval": "2",
             "keepalives_count": "3", "tcp_user_timeout": "8000"}
# Whoever stops in the middle of a commit must not hold up the fleet, nor wait for somebody who does.
# What is acknowledged is on disk, whatever the server does for others.
# News are few rows of many, which an index finds; the planner takes a third of the table for them where it has no
# statistics yet, or plans for every version at once, and then reads all of it.
_SESSION = ("SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '15s'; SET client_encoding = 'UTF8'; "
            "SET enable_seqscan = off; SET plan_cache_mode = force_custom_plan; SET jit = off; "
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN "
            "('off', 'local')")
# Answers of a server that will not do better later, as one will that starts, stops, recovers or is full.
_REFUSALS = ("authentication failed", "does not exist", "no password supplied", "pg_hba.conf", "permission denied",
             "not permitted to log in", "certificate", "does not support SSL")
# What libpq adds to the news that a connection is gone.
_GUESS = "This probably means the server terminated abnormally\n\tbefore or while processing the request."
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.05, 1.0


def connect(address: ServerAddress) -> Connection:
  """Returns a connection that commits each statement by itself.

  Errors: UnreachableError for a server that is not there now; Pi0RagError for one that refuses, or for an address that
    libpq does not understand.
  """
  try:
    given = conninfo.conninfo_to_dict(address.uri)
  except psycopg.Error as error:
    raise Pi0RagError(f"{address} is no address that libpq understands: {_without(address, error)}") from None
  try:
    connection = psycopg.connect(**(_DEFAULTS | given), autocommit=True)  # pyright: ignore[reportArgumentType]
    try:
      connection.execute(_SESSION)
    except BaseException:
      connection.close()
      raise
    return connection
  except psycopg.OperationalError as error:
    text = _without(address, error)
    if any(words in text for words in _REFUSALS):
      raise Pi0RagError(f"{address}: the server refuses: {text}") from None
    raise UnreachableError(f"{address} cannot be reached: {text}") from None
  except psycopg.Error as error:
    raise Pi0RagError(f"{address} is no address that libpq understands: {_without(address, error)}") from None


@contextlib.contextmanager
def reported(address: ServerAddress) -> Iterator[None]:
  """Turns the errors of a connection inside the block into ours: UnreachableError where it may be lost."""
  try:
    yield
  except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled) as error:
    raise Pi0RagError(f"{address} is held up by another writer: {_without(address, error)}; try again") from None
  except (psycopg.OperationalError, psycopg.InterfaceError,
          psycopg.errors.IdleInTransactionSessionTimeout) as error:
    raise UnreachableError(f"the connection to {address} was lost: {_without(address, error)}") from None
  except psycopg.Error as error:
    raise Pi0RagError(f"{address} cannot be read or written: {_without(address, error)}") from None


class Patience:
  """Waits longer and longer between tries, for so many seconds in all."""

  def __init__(self, seconds: float):
    self._until_s = time.monotonic() + seconds
    self._wait_s = _SHORTEST_WAIT_S

  def wait(self) -> bool:
    """Returns whether another try is due, after a pause."""
    left_s = self._until_s - time.monotonic()
    if left_s <= 0:
      return False
    time.sleep(min(self.next_s(), left_s))
    return True

  def next_s(self) -> float:
    """Returns the next pause; robots that lost a server together do not come back all at once."""
    pause_s, self._wait_s = self._wait_s, min(2 * self._wait_s, _LONGEST_WAIT_S)
    return pause_s * random.uniform(0.75, 1.25)


def _without(address: ServerAddress, error: BaseException) -> str:
  """Returns the start of an error's text as one line, without passwords."""
  text = str(error).replace(_GUESS, "")
  for secret in address.secrets():
    text = text.replace(secret, "***")
  return one_line(text or type(error).__name__)
