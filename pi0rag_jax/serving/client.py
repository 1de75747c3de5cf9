"""A policy behind a websocket, as if it were here: talks to `pi0rag_jax.serving.server` and to openpi's server.

    policy = WebsocketClientPolicy("192.168.0.2", 8000)
    chunk_TA = policy.infer(observation)["actions"]
"""

import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Mapping

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.serving import messages
from pi0rag_jax.serving.teaching import ServerError, Teaching

try:
  from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidURI
  from websockets.protocol import State
  from websockets.sync.client import connect
except ImportError as error:
  raise Pi0RagError(f"the client of a policy server needs websockets: {messages.EXTRA}") from error

RETRY_S = 5.0

logger = logging.getLogger(__name__)


class ConnectionLost(Pi0RagError):
  """The server is gone, or has let this client go."""


class WebsocketClientPolicy:
  """openpi's client: `infer` sends an observation and waits for the actions."""

  def __init__(self, host: str = "0.0.0.0", port: int | None = None, api_key: str | None = None):
    """Waits for the server as long as it takes, and reads its metadata.

    Args:
      host: a name, an address, or a whole URI such as wss://example.com/policy.
      port: None if the host has it, or for the protocol's own.
      api_key: the server's --token, or what a gateway before it asks for.
    Errors: Pi0RagError for a host that does not exist and for a server that refuses, or speaks otherwise.
    """
    address = host if host.startswith(("ws://", "wss://")) else f"ws://{host}"
    self._uri = address if port is None else f"{address}:{port}"
    self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
    self._open = contextlib.ExitStack()
    self._wait_for_server()

  def get_server_metadata(self) -> dict:
    """Returns what the server told about its policy."""
    return self._metadata

  def infer(self, obs: Mapping) -> dict:
    """Returns the policy's answer: `actions` [T, A], `policy_timing` and `server_timing` (ms). Arrays are read-only.

    Errors: ServerError with the server's reason when the inference failed there; openpi's servers, ours included,
      then close the connection. Pi0RagError when it is closed, and for an observation that cannot be sent.
    """
    request = messages.pack(obs)
    try:
      self._connection.send(request)
    except ConnectionClosed as error:
      raise self._closed(error) from error
    return self._receive()

  def reset(self) -> None:
    """Does nothing, as openpi's: what a policy remembers of an episode, the server forgets with the connection."""

  @property
  def connected(self) -> bool:
    """Whether the server is there, as far as its end of the connection tells: a killed one is missed at once."""
    return self._connection.state is State.OPEN

  def close(self) -> None:
    """Closes the connection; a second call does nothing."""
    self._open.close()

  def _receive(self) -> dict:
    try:
      reply = self._connection.recv()
    except ConnectionClosed as error:
      raise self._closed(error) from error
    except BaseException:
      self.close()  # else the answer to an interrupted request would be taken for that to the next
      raise
    if isinstance(reply, str):
      raise ServerError(f"Error in inference server:\n{reply}")
    return messages.unpack(reply)

  def _closed(self, error: ConnectionClosed) -> ConnectionLost:
    return ConnectionLost(f"the connection to {self._uri} is closed ({error}): make a new WebsocketClientPolicy")

  def _wait_for_server(self) -> None:
    """Connects, trying anew every RETRY_S, and reads what the server tells first."""
    while True:
      try:
        self._connection = self._open.enter_context(self._connect())
        self._metadata = self._receive()
        return
      except (socket.gaierror, ssl.SSLError) as error:
        raise Pi0RagError(f"no policy server at {self._uri}: {error}") from error
      # Not up yet, or a tunnel to it is and it is not, or it went away at once.
      except (OSError, InvalidMessage, ConnectionClosed, ConnectionLost) as error:
        self.close()
        logger.warning("Still waiting for the policy server at %s (%s)", self._uri, error)
        time.sleep(RETRY_S)
      except (InvalidURI, InvalidHandshake) as error:
        raise Pi0RagError(f"{self._uri} is no policy server, or refuses this client: {error}") from error

  def _connect(self):
    return connect(
      self._uri, additional_headers=self._headers, compression=None, max_size=None,
      # openpi's server answers no ping while it infers, and a first inference compiles for minutes.
      ping_timeout=None,
      # A robot's server is in its own network, which a proxy from the environment does not reach.
      proxy=True if self._uri.startswith("wss://") else None)


class TeachingClient(Teaching, WebsocketClientPolicy):
  """A robot that teaches the server's memory while it works (see `Teaching`): the server runs with `--learn`.

  A server that was restarted is waited for, and the episode goes on where it was. Errors, beside those of `infer`:
  ServerError for what the server does not accept. It closes the connection then, and the next call opens another one.
  """

  def __init__(self, host: str = "0.0.0.0", port: int | None = None, api_key: str | None = None):
    Teaching.__init__(self)
    WebsocketClientPolicy.__init__(self, host, port, api_key)
    self._lost = False

  def _ask(self, message: Mapping) -> dict:
    """Returns the answer to a message, which is sent again to a server that went away meanwhile."""
    while True:
      try:
        if self._lost:
          self._reconnect()
        return WebsocketClientPolicy.infer(self, message)
      except ServerError:
        self._lost = True
        raise
      except ConnectionLost as error:
        self._lost = True
        logger.warning("%s; trying again", error)

  def _reconnect(self) -> None:
    self.close()
    self._wait_for_server()
    self._lost = False
