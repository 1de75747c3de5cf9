"""openpi's websocket protocol around any policy: metadata first, then an answer to each observation.

All messages are those of `messages`. A failed inference is answered with a text frame, one line, and the connection is
closed with 1011; the server goes on. `GET /healthz` answers OK, during an inference too, and browsers get a page where
there is one.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import http
import logging
import signal
import socket
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.serving import messages
from pi0rag_jax.serving.admission import Admission, CalmLog, Client, Clients, health_check
from pi0rag_jax.serving.batching import Batches, Turn

try:
  from websockets.asyncio.server import Request, Response, ServerConnection, serve
  from websockets.exceptions import ConnectionClosed
  from websockets.frames import CloseCode
  from websockets.protocol import State
except ImportError as error:
  raise Pi0RagError(f"a policy server needs websockets: {messages.EXTRA}") from error

if TYPE_CHECKING:
  from pi0rag_jax.serving.metrics import Metrics

CLOSE_TIMEOUT_S = 2.0
CLOSE_REASON = "Internal server error. The previous frame says which."

logger = logging.getLogger(__name__)
# websockets logs tracebacks of every handshake that fails; what matters of them is logged here.
_silent = logging.Logger("websockets", logging.CRITICAL + 1)


class Session(Protocol):
  """A policy for one client. `steering.agent.Agent` and `serving.session.TeachingSession` also have `talk`, which lets
  several be decided for at once, and may answer with a `messages.Later`.
  """

  def infer(self, observation: Mapping, /) -> Mapping:
    """Returns `actions` [T, A] and whatever else clients are told, nothing but what `messages.pack` takes."""
    ...


class ServablePolicy(Protocol):
  """What can be served: `steering.agent.Agent`."""

  def session(self) -> Session:
    """Returns the policy for another client: what it remembers of an episode is the client's own."""
    ...


class Page(Protocol):
  """What is answered without a websocket: `serving.memory_page.MemoryPage` to browsers, `serving.metrics.Metrics`."""

  def concerns(self, request: Request, /) -> bool:
    """Returns whether a request is this page's."""
    ...

  async def answer(self, request: Request, /) -> Response:
    """Returns the answer to a browser, from whichever thread."""
    ...


class WebsocketPolicyServer:
  """Serves a policy to several clients, one inference at a time."""

  def __init__(self, policy: ServablePolicy, host: str = "127.0.0.1", port: int | None = None,
               metadata: Mapping | None = None, *, admission: Admission | None = None,
               reserved: socket.socket | None = None, pages: Sequence[Page] = (), metrics: "Metrics | None" = None,
               window_s: float = 0.0):
    """Reserves the port; clients are refused, and try again, until `serve_forever`.

    Args:
      host: the address to listen at; 0.0.0.0 is every one of the machine.
      port: None takes a free one.
      metadata: told to each client first.
      reserved: what `reserve` gave, instead of host and port.
      pages: for browsers and whoever else asks for no websocket.
      metrics: hears of every answer, and is a page too.
      window_s: how long a client waits for others, whose observations are then decided together.
    Errors: Pi0RagError when address or port cannot be had.
    """
    self._policy, self._admission = policy, admission or Admission()
    self._pages, self._metrics = tuple(pages) + (() if metrics is None else (metrics,)), metrics
    self._metadata = messages.pack(dict(metadata or {}))
    self._socket = reserve(host, port or 0) if reserved is None else reserved
    self._clients, self._log = Clients(self._admission), CalmLog(logger)
    # Its only thread infers; the event loop answers pings, health checks and new clients meanwhile.
    self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="policy")
    self._window_s, self._batches = window_s, None
    self._patient = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="disk")  # what waits for a disk

  @property
  def port(self) -> int:
    """The port it listens at, or will."""
    return self._socket.getsockname()[1]

  def serve_forever(self, ready: Callable[[], object] = lambda: None) -> None:
    """Serves, from the main thread, until SIGTERM or Ctrl-C; clients are then told that the server goes away.

    Args:
      ready: called once clients can connect.
    Errors: KeyboardInterrupt after Ctrl-C; as `run`.
    """
    with contextlib.suppress(asyncio.CancelledError):
      asyncio.run(self._run_until_terminated(ready))

  async def _run_until_terminated(self, ready: Callable[[], object]) -> None:
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    # Ctrl-C cancels the task too, by asyncio's own handler. Raised anywhere else it would end a client's connection.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await self.run(ready)

  async def run(self, ready: Callable[[], object] = lambda: None) -> None:
    """Serves until the task is cancelled; see `serve_forever`.

    Errors: Pi0RagError when another server took the port meanwhile.
    """
    asyncio.get_running_loop().set_exception_handler(self._log_trouble)
    with self._worker, self._patient, contextlib.closing(self._socket):
      try:
        # Pings keep idle connections open in routers, but a late pong closes none: a client may stop for long.
        server = await serve(
          cast(Any, self._handle), sock=self._socket, compression=None, max_size=self._admission.message_bytes,
          ping_timeout=None, close_timeout=CLOSE_TIMEOUT_S, process_request=self._admit, logger=_silent,
          create_connection=cast(Any, functools.partial(Client, clients=self._clients)))
      except OSError as error:
        raise Pi0RagError(f"cannot listen at port {self.port}: {error.strerror}; choose another port") from error
      async with server, self._batching():
        ready()
        await server.serve_forever()

  @contextlib.asynccontextmanager
  async def _batching(self) -> AsyncIterator[None]:
    """Decides for several clients at once inside the block, where there is a window for it."""
    if not self._window_s:
      yield
      return
    self._batches = Batches(self._worker, self._window_s)
    deciding = asyncio.create_task(self._batches.run())
    try:
      yield
    finally:
      deciding.cancel()

  def _log_trouble(self, loop, context: Mapping) -> None:
    """Logs what asyncio reports, such as used-up descriptors, many times a second."""
    self._log(logging.WARNING, "%s (%s)", context["message"], context.get("exception") or "no exception")

  async def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
    """Returns the refusal of a client, or the answer to a browser or a health check; None lets a client go on."""
    assert isinstance(connection, Client), "as `serve` was told"
    if (healthy := health_check(connection, request)) is not None:
      return healthy
    for page in self._pages:
      if page.concerns(request):
        return await page.answer(request)
    refusal = self._admission.refusal(request)
    if refusal is None and not self._clients.make_room():
      refusal = http.HTTPStatus.SERVICE_UNAVAILABLE, f"all {self._admission.connections} places are taken\n"
    if refusal is not None:
      self._log(logging.WARNING, "A client at %s is refused: %s", connection.remote_address, refusal[1].strip())
      return connection.respond(*refusal)
    if self._admission.token is None and self._admission.key(request):
      self._log(logging.WARNING, "The client at %s sends a key, which nobody checks: this server has no --token",
                connection.remote_address)
    connection.admitted = True
    return None

  async def _handle(self, connection: Client) -> None:
    """Serves one client until it goes, asks nothing for long, or an inference fails."""
    self._log(logging.INFO, "Connection from %s opened", connection.remote_address)
    self._clients.answered(connection)  # the handshake
    try:
      async with asyncio.timeout(self._admission.idle_s):
        await connection.send(self._metadata)
      await self._answer_all(connection)
    except ConnectionClosed:
      self._log(logging.INFO, "Connection from %s closed", connection.remote_address)
      return
    except TimeoutError:
      self._log(logging.INFO, "Connection from %s closed: idle", connection.remote_address)
      reason = None
    except Exception as error:  # whatever it is, the client is told, and the others are served on
      if self._metrics is not None:
        self._metrics.failed()
      reason = self._reason(connection, error)
    # Only here: an error's frames keep the message.
    with contextlib.suppress(ConnectionClosed, TimeoutError):
      if reason is None:
        await connection.close(CloseCode.GOING_AWAY, f"idle for {self._admission.idle_s:g} s")
        return
      await asyncio.sleep(self._admission.failed_s)
      async with asyncio.timeout(self._admission.idle_s):
        await connection.send(reason)
      await connection.close(CloseCode.INTERNAL_ERROR, CLOSE_REASON)

  async def _answer_all(self, connection: Client) -> None:
    infer = asyncio.get_running_loop().run_in_executor
    session = await infer(self._worker, self._policy.session)
    more_timing: dict[str, float] = {}
    while True:
      began = time.perf_counter()  # the client's own time counts in prev_total_ms, as in openpi
      async with asyncio.timeout(self._admission.idle_s):
        request = await connection.recv()
      turn = Turn(session, more_timing, wanted=lambda: connection.state is State.OPEN)
      if self._metrics is not None:
        turn.told = self._metrics.answered
      try:
        if self._batches is None:
          await infer(self._worker, turn.alone, request)
        elif not await self._batches.answer(turn, request):
          return  # the client has gone
        answer = turn.answer
        if isinstance(answer, messages.Later):
          values = await infer(self._patient, answer.slow)
          await infer(self._worker, answer.then)
          answer = turn.packed(values)
      finally:
        connection.done(request)
        del request  # megabytes, until the next one comes
      async with asyncio.timeout(self._admission.idle_s):
        await connection.send(answer)
      connection.answers += 1
      more_timing = {"prev_total_ms": _since_ms(began)}

  def _reason(self, connection: Client, error: Exception) -> str:
    """Returns in one line why a client has no answer; logs it."""
    self._log(logging.ERROR, "Connection from %s failed: %s", connection.remote_address, error)
    if isinstance(error, Pi0RagError):
      return messages.shown(error)
    places = [f"{place.name}:{place.lineno}" for place in traceback.extract_tb(error.__traceback__)]
    self._log(logging.ERROR, "It is a bug, %s at %s", type(error).__name__, " < ".join(places[:-8:-1]))
    return f"the inference failed with a {type(error).__name__}: the server's log says more"


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
