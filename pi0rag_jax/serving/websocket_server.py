"""openpi's websocket protocol around any policy: metadata first, then an answer to each observation.

All messages are those of `messages`. A failed inference is answered with a text frame, the traceback, and the
connection is closed with 1011; the server goes on. `GET /healthz` answers OK, during an inference too.
"""

import asyncio
import concurrent.futures
import contextlib
import http
import logging
import signal
import socket
import time
import traceback
from collections.abc import Mapping
from typing import Protocol

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.serving import messages

try:
  from websockets.asyncio.server import Request, Response, ServerConnection, serve
  from websockets.exceptions import ConnectionClosed
  from websockets.frames import CloseCode
except ImportError as error:
  raise Pi0RagError(f"a policy server needs websockets: {messages.EXTRA}") from error

HEALTH_PATH = "/healthz"
CLOSE_REASON = "Internal server error. Traceback included in previous frame."

logger = logging.getLogger(__name__)


class ServablePolicy(Protocol):
  """What can be served."""

  def infer(self, observation: Mapping, /) -> Mapping:
    """Returns `actions` [T, A] and whatever else clients are told, nothing but what `messages.pack` takes."""
    ...


class WebsocketPolicyServer:
  """Serves a policy to any number of clients, one inference at a time."""

  def __init__(self, policy: ServablePolicy, host: str = "0.0.0.0", port: int | None = None,
               metadata: Mapping | None = None, *, reserved: socket.socket | None = None):
    """Reserves the port; clients are refused, and try again, until `serve_forever`.

    Args:
      host: the address to listen at; 0.0.0.0 is every one of the machine. Nobody is asked for a key or password.
      port: None takes a free one.
      metadata: told to each client first.
      reserved: what `reserve` gave, instead of host and port.
    Errors: Pi0RagError when address or port cannot be had.
    """
    self._policy = policy
    self._metadata = messages.pack(dict(metadata or {}))
    self._socket = reserve(host, port or 0) if reserved is None else reserved
    # Its only thread infers; the event loop answers pings, health checks and new clients meanwhile.
    self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="policy")

  @property
  def port(self) -> int:
    """The port it listens at, or will."""
    return self._socket.getsockname()[1]

  def serve_forever(self) -> None:
    """Serves, from the main thread, until SIGTERM or Ctrl-C; clients are then told that the server goes away.

    Errors: KeyboardInterrupt after Ctrl-C; as `run`.
    """
    with contextlib.suppress(asyncio.CancelledError):
      asyncio.run(self._run_until_terminated())

  async def _run_until_terminated(self) -> None:
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    # Ctrl-C cancels the task too, by asyncio's own handler. Raised anywhere else it would end a client's connection.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await self.run()

  async def run(self) -> None:
    """Serves until the task is cancelled. Errors: Pi0RagError when another server took the port meanwhile."""
    with self._worker, contextlib.closing(self._socket):
      try:
        # Pings keep idle connections open in routers, but a late pong closes none: a client may stop for long.
        server = await serve(self._handle, sock=self._socket, compression=None, max_size=None, ping_timeout=None,
                             process_request=_health_check)
      except OSError as error:
        raise Pi0RagError(f"cannot listen at port {self.port}: {error.strerror}; choose another port") from error
      async with server:
        await server.serve_forever()

  async def _handle(self, connection: ServerConnection) -> None:
    """Serves one client until it goes or an inference fails."""
    logger.info("Connection from %s opened", connection.remote_address)
    try:
      await connection.send(self._metadata)
      await self._answer_all(connection)
    except ConnectionClosed:
      logger.info("Connection from %s closed", connection.remote_address)
    except Exception as error:  # whatever it is, the client is told, and the others are served on
      logger.error("Connection from %s failed: %s", connection.remote_address, error,
                   exc_info=not isinstance(error, Pi0RagError))
      with contextlib.suppress(ConnectionClosed):
        await connection.send(traceback.format_exc())
        await connection.close(CloseCode.INTERNAL_ERROR, CLOSE_REASON)

  async def _answer_all(self, connection: ServerConnection) -> None:
    loop = asyncio.get_running_loop()
    more_timing: dict[str, float] = {}
    while True:
      began = time.perf_counter()  # the client's own time counts in prev_total_ms, as in openpi
      request = await connection.recv()
      answer = await loop.run_in_executor(self._worker, self._answer, request, more_timing)
      await connection.send(answer)
      more_timing = {"prev_total_ms": _since_ms(began)}

  def _answer(self, request, more_timing: dict[str, float]) -> bytes:
    """Returns the packed answer to a packed observation (on the worker's thread)."""
    observation = messages.unpack(request)
    if not isinstance(observation, dict):
      raise Pi0RagError(f"a request is a map, the observation; got a {type(observation).__name__}")
    began = time.perf_counter()
    answer = self._policy.infer(observation)
    timing = {"infer_ms": _since_ms(began), **more_timing}
    return messages.pack({**answer, "server_timing": timing})


def _health_check(connection: ServerConnection, request: Request) -> Response | None:
  """Returns the answer to a health check; None lets a client go on."""
  return connection.respond(http.HTTPStatus.OK, "OK\n") if request.path == HEALTH_PATH else None


def reserve(host: str, port: int) -> socket.socket:
  """Returns a socket at a port, 0 for a free one, that does not listen yet.

  Errors: Pi0RagError when address or port cannot be had.
  """
  reserved = None
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    reserved = socket.socket(family, kind, protocol)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that just ended holds it for a minute
    reserved.bind(address)
    return reserved
  except (OSError, OverflowError) as error:
    if reserved is not None:
      reserved.close()
    reason = getattr(error, "strerror", None) or str(error)
    raise Pi0RagError(f"cannot listen at {host}:{port}: {reason}; choose another host or port") from error


def _since_ms(began: float) -> float:
  return (time.perf_counter() - began) * 1000
