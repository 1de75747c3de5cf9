"""The console's page: pictures and what is told of the episodes go to the browser, keys and buttons come back."""

import asyncio
import contextlib
import dataclasses
import functools
import http
import json
import logging
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from pi0rag_jax.control.loop import ControlLoop
from pi0rag_jax.control.operator import Operator
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.pages import page
from pi0rag_jax.serving import LOOPBACK, messages, names_this_machine
from pi0rag_jax.serving.admission import Admission, Client, Clients

try:
  from websockets.asyncio.server import Request, Response, ServerConnection, serve
  from websockets.datastructures import Headers
  from websockets.exceptions import ConnectionClosed
except ImportError as error:
  raise Pi0RagError(f"the console needs websockets: {messages.EXTRA}") from error

WIRE = "/wire"
FILM_PX, CAMERA_PX = 192, 128
MAX_VIEWERS, MAX_MESSAGE = 4, 1024
_TEMPLATES = Path(__file__).parent / "templates"


class ConsoleSite:
  """One page for the person who teaches, and some who watch; only browsers of this machine are let in.

  Args:
    facts: for the page: what runs, and where its memory is shown.
    cameras: of the robot's raw observation, the pictures float or uint8[H, W, 3] that the policy sees, by name.
    films: whether the world can be looked at by people.
  """

  def __init__(self, operator: Operator, facts: Mapping[str, Any],
               cameras: Callable[[Mapping[str, Any]], Mapping[str, np.ndarray]], *, films: bool):
    self._operator, self._cameras, self._films = operator, cameras, films
    template = page.environment(_TEMPLATES).get_template("teach.html")
    self._html = template.render(wire=WIRE, facts=dict(facts)).encode()
    self._clients = Clients(Admission(connections=MAX_VIEWERS))
    self._loop: asyncio.AbstractEventLoop | None = None
    self._viewers: dict[ServerConnection, asyncio.Event] = {}
    self._shown = "{}"
    self._seen: tuple[Any, dict[str, str]] = None, {}  # the observation, and its pictures
    self._film: tuple[Any, str] = None, ""  # the moment, and its picture

  def show(self, loop: ControlLoop) -> None:
    """Tells the pages what there is now; called by the loop's thread."""
    if self._loop is None or not self._viewers:
      return
    self._shown = json.dumps(self._state(loop))
    with contextlib.suppress(RuntimeError):  # the loop has just ended
      self._loop.call_soon_threadsafe(self._wake)

  async def run(self, reserved: socket.socket, ready: Callable[[], object] = lambda: None) -> None:
    """Serves until the task is cancelled; `ready` is called once browsers can connect."""
    self._loop = asyncio.get_running_loop()
    silent = logging.Logger("websockets", logging.CRITICAL + 1)
    with contextlib.closing(reserved):
      async with serve(cast(Any, self._view), sock=reserved, process_request=self._admit, logger=silent,
                       max_size=MAX_MESSAGE, compression=None,
                       create_connection=cast(Any, functools.partial(Client, clients=self._clients))) as server:
        ready()
        await server.serve_forever()

  def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
    """Returns the page, or why there is none; None lets the page's websocket in."""
    here = "".join(request.headers.get_all("Host")[:1])
    origins = set(request.headers.get_all("Origin"))
    if not names_this_machine(here) or not origins <= {f"http://{here}"}:
      return connection.respond(http.HTTPStatus.FORBIDDEN, f"the console is at {LOOPBACK[0]} only\n")
    if request.path == WIRE:
      if not origins or len(self._viewers) >= MAX_VIEWERS:
        return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "no more pages can be open\n")
      return None
    if request.path != "/":
      return connection.respond(http.HTTPStatus.NOT_FOUND, "there is only one page, at /\n")
    headers = Headers(page.HEADERS | {"Content-Type": "text/html; charset=utf-8",
                                      "Content-Length": str(len(self._html))})
    return Response(http.HTTPStatus.OK.value, http.HTTPStatus.OK.phrase, headers, self._html)

  async def _view(self, connection: Client) -> None:
    """Serves one page until it is closed."""
    self._viewers[connection] = asyncio.Event()
    self._viewers[connection].set()
    sending = asyncio.ensure_future(self._send(connection))
    try:
      async for message in connection:
        connection.done(message)
        try:
          self._operator.tell(json.loads(message))
        except (Pi0RagError, ValueError, RecursionError):
          await connection.close(1008, "no message of the page")
    except ConnectionClosed:
      pass
    finally:
      sending.cancel()
      del self._viewers[connection]
      if not self._viewers:
        self._operator.tell({"auto": False})

  async def _send(self, connection: Client) -> None:
    """Sends the newest state; a page that is slow misses some in between."""
    with contextlib.suppress(ConnectionClosed):
      while True:
        await self._viewers[connection].wait()
        self._viewers[connection].clear()
        await connection.send(self._shown)
        connection.answers += 1

  def _wake(self) -> None:
    for news in self._viewers.values():
      news.set()

  def _state(self, loop: ControlLoop) -> dict[str, Any]:
    """Returns all that the page shows."""
    if self._seen[0] is not loop.seen:
      pictures = self._cameras(loop.seen) if loop.seen else {}
      self._seen = loop.seen, {name: _jpeg(picture, CAMERA_PX) for name, picture in pictures.items()}
    if self._films and loop.episodes and self._film[0] != loop.moment:
      self._film = loop.moment, _jpeg(loop.driver.film(FILM_PX), FILM_PX)
    return {"picture": self._film[1], "cameras": self._seen[1], "by": loop.by,
            "waiting": loop.waiting, "auto": self._operator.auto, "open": self._operator.is_open,
            "surest": dict(loop.surest), "prompt": str(loop.seen.get("prompt", ""))[:200],
            "episodes": [dataclasses.asdict(told) for told in loop.episodes]}


@contextlib.contextmanager
def beside(run: Callable[[Callable[[], object]], Coroutine]) -> Iterator[None]:
  """Runs a server on a thread of its own for the length of the block; `run` is told what to call once it serves."""
  loop, ready, failed = asyncio.new_event_loop(), threading.Event(), []

  async def guarded() -> None:
    try:
      await run(ready.set)
    except Exception as error:  # handed over to who waits for it
      failed.append(error)
    finally:
      ready.set()

  task = loop.create_task(guarded())

  def work() -> None:
    with contextlib.suppress(asyncio.CancelledError):
      loop.run_until_complete(task)

  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  try:
    ready.wait()
    if failed:
      raise failed[0]
    yield
  finally:
    loop.call_soon_threadsafe(task.cancel)
    thread.join()
    loop.close()


def _jpeg(picture: np.ndarray, least_px: int) -> str:
  """Returns a picture as a data URI, enlarged by a whole number up to about so many pixels."""
  picture = np.asarray(picture)
  if picture.dtype != np.uint8:
    picture = np.clip(picture * 255.0 if picture.max(initial=0) <= 1 else picture, 0, 255).astype(np.uint8)
  scale = max(1, least_px // max(picture.shape[:2]))
  return page.jpeg(Image.fromarray(picture.repeat(scale, axis=0).repeat(scale, axis=1)))
