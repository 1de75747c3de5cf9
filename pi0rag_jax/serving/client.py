"""A policy behind a websocket, as if it were here: talks to `pi0rag_jax.serving.server` and to openpi's server.

    policy = WebsocketClientPolicy("192.168.0.2", 8000)
    chunk_TA = policy.infer(observation)["actions"]
"""

import contextlib
import logging
import socket
import ssl
import time
import uuid
from collections.abc import Mapping, Sequence

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.serving import messages

try:
  from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidURI
  from websockets.sync.client import connect
except ImportError as error:
  raise Pi0RagError(f"the client of a policy server needs websockets: {messages.EXTRA}") from error

RETRY_S = 5.0

logger = logging.getLogger(__name__)


class ConnectionLost(Pi0RagError):
  """The server is gone, or has let this client go."""


class ServerError(Pi0RagError, RuntimeError):
  """The server failed at an inference. A RuntimeError too, which is what openpi's client raises."""


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


class TeachingClient(WebsocketClientPolicy):
  """A robot that teaches the server's memory while it works: the server runs with `--learn`.

      policy.begin(task="pick up the cube")
      while not done:
        chunk_TA = policy.infer(observation)["actions"]
        policy.did(executed_NA, by="human")  # only where somebody else acted, or not all of the chunk was executed
      policy.end(success=True)

  A server that was restarted is waited for, and the episode goes on where it was. Errors, beside those of `infer`:
  ServerError for what the server does not accept. It closes the connection then, and the next call opens another one.
  """

  def __init__(self, host: str = "0.0.0.0", port: int | None = None, api_key: str | None = None):
    super().__init__(host, port, api_key)
    self._episode: dict = {}  # what each message says of the episode under way
    self._did: dict = {}  # since the last answer
    self._decisions = 0
    self._lost = False

  def begin(self, episode: str = "", *, task: str = "", robot: str = "", session: int | None = None) -> str:
    """Returns the id of an episode that begins now; one that is under way is given up.

    Args:
      episode: an id that no other episode has; '' makes one.
      task, robot: names, for whoever looks into the memory.
      session: of another connection, of a robot that knows nothing of episodes: its observations belong to this one.
    """
    self._episode = {"id": episode or uuid.uuid4().hex, "task": task, "robot": robot}
    self._did, self._decisions = {}, 0
    if session is not None:
      self._tell({**self._episode, "session": session})
    return self._episode["id"]

  def infer(self, obs: Mapping) -> dict:
    """Returns the policy's answer, as of any client; in an episode its `episode` says which record was the surest, and
    whether somebody should look (`asks`), once the memory knows enough to tell."""
    if not self._episode:
      return self._ask(obs)
    answer = self._ask({**obs, "episode": {**self._episode, **self._did, "decision": self._decisions}})
    if "episode" not in answer:
      raise ServerError("this server does not learn: start it with --learn")
    self._did, self._decisions = {}, self._decisions + 1
    return answer

  def did(self, actions=None, *, ticks: int | None = None, by: str = "policy") -> None:
    """Says what was executed since the last answer: by default the policy's own number of its actions.

    Args:
      actions: float[n, A] in the robot's units.
      ticks: instead of `actions`, how many of the answer's.
      by: 'policy', 'human' or 'expert'.
    """
    said = {"by": by, "done": None if actions is None else np.asarray(actions, np.float32), "ticks": ticks}
    self._did = {name: value for name, value in said.items() if value is not None}

  def end(self, success: bool, *, failure_kind: str = "", note: str = "") -> dict:
    """Returns the `records` that the episode taught, once they are durable."""
    said = {**self._episode, **self._did, "end": {"success": success, "failure_kind": failure_kind, "note": note}}
    told = self._tell(said | ({"decision": self._decisions} if self._decisions else {}))
    self._episode, self._did = {}, {}
    return told

  def undo(self, episode: str) -> dict:
    """Returns the records of an episode that were `forgotten`."""
    return self._tell({"undo": episode})

  def forget(self, records: Sequence[int]) -> dict:
    """Returns the records that were `forgotten`, by their ids."""
    return self._tell({"forget": [int(record) for record in records]})

  def label(self, episode: str, tick: int, chunk) -> dict:
    """Returns the `records` that came of a label, once they are durable.

    Args:
      episode: one that is over.
      tick: when the policy decided, in control ticks since the episode's beginning.
      chunk: float[T, A] in the robot's units, what should have been done from there on.
    """
    said = {"episode": episode, "tick": int(tick), "chunk": np.asarray(chunk, np.float32)}
    return self._tell({"label": said})

  def sessions(self) -> dict:
    """Returns the `sessions` that are connected, and which of them is `yours`."""
    return self._tell({"sessions": True})

  def _tell(self, entry: Mapping) -> dict:
    answer = self._ask({"episode": entry})
    if "episode" not in answer:
      raise ServerError("this server does not learn: start it with --learn")
    return answer["episode"]

  def _ask(self, message: Mapping) -> dict:
    """Returns the answer to a message, which is sent again to a server that went away meanwhile."""
    while True:
      try:
        if self._lost:
          self._reconnect()
        return super().infer(message)
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
