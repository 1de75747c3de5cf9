"""The page of a memory: what it learned, from whom, and what of it helps; deleting and undo for those with the token.

`python -m pi0rag_jax.memory serve DIR` serves it alone, a policy server at `/memory` beside its robots. The page asks
for JSON of bounded size. All of it is read from the memory's file, beside a policy by a process of its own, so that no
decision waits.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import http
import json
import logging
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import parse_qs, urlsplit

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import address, forgetting
from pi0rag_jax.memory.aside import SurveyAside
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.survey import Survey
from pi0rag_jax.pages import page
from pi0rag_jax.serving import LOOPBACK, messages, names_this_machine
from pi0rag_jax.serving.admission import Admission, Client, Clients, health_check
from pi0rag_jax.serving.websocket_server import reserve

try:
  from websockets.asyncio.server import Request, Response, ServerConnection, serve
  from websockets.datastructures import Headers
except ImportError as error:
  raise Pi0RagError(f"the page of a memory needs websockets: {messages.EXTRA}") from error

if TYPE_CHECKING:
  from pi0rag_jax.serving.labels import Label, Labels

PATH = "/memory"
MAX_IDS, MAX_ENTRIES, MAX_PAGE, MAX_WAITING = 500, 1000, 10**6, 16
_TEMPLATES = Path(__file__).parent / "templates"
# What an action of the page is told: the request's parameters.
Asked = Mapping[str, str]

logger = logging.getLogger(__name__)


class Changes(Protocol):
  """Who may change the memory: `serving.session.Teachable` where a server learns, `FileChanges` where none does."""

  def undo(self, name: str) -> Mapping[str, Any]: ...
  def forget(self, ids: list[int]) -> Mapping[str, Any]: ...
  def label(self, label: "Label") -> Mapping[str, Any]: ...
  @property
  def labels(self) -> "Labels": ...


class FileChanges:
  """Changes of a memory that nobody serves: it is opened for each, and left to others in between."""

  LOCK_TIMEOUT_S = 0.2

  def __init__(self, directory, episodes: str | None = None):
    """
    Args:
      episodes: folder of kept episodes.
    """
    self._directory, self._episodes = directory, episodes
    self._labels: Labels | None = None

  def undo(self, name: str) -> dict[str, Any]:
    """Returns which records of an episode were taken back."""
    with self._opened() as memory:
      return {"id": name, "forgotten": forgetting.undo_episode(memory, name)}

  def forget(self, ids: list[int]) -> dict[str, Any]:
    """Returns which records were removed."""
    with self._opened() as memory:
      return {"forgotten": forgetting.forget(memory, ids)}

  def label(self, label: "Label") -> dict[str, Any]:
    """Returns which record came of a label. Errors: as `Labels.teach`."""
    with self._opened() as memory:
      return self.labels.teach(memory, label)

  @property
  def labels(self) -> "Labels":
    """The moments that a server's log still tells of. Errors: Pi0RagError for a robot that is not ours."""
    if self._labels is None:
      self._labels = self._made_labels()
    return self._labels

  def _made_labels(self) -> "Labels":
    # Late: models, robots and data take libraries that a memory does without.
    from pi0rag_jax.robots import registry
    from pi0rag_jax.serving.episode_log import LOG_NAME
    from pi0rag_jax.serving.labels import Labels

    header = address.stored_header(self._directory)
    robot = None if header is None else registry.robot_of(header.actions)
    if header is None or robot is None or robot.actions is None:
      raise Pi0RagError("nobody here knows what the actions of this memory's robot mean: label at the server that "
                        "learns")
    return Labels(address.beside(self._directory) / LOG_NAME, robot, robot.actions, header.action_horizon,
                  episodes=self._episodes)

  def _opened(self) -> Memory:
    return Memory.load(self._directory, read_only=False, lock_timeout_s=self.LOCK_TIMEOUT_S)


class Refused(Exception):
  """Why a request is not answered, as status and text."""

  def __init__(self, status: http.HTTPStatus, text: str):
    super().__init__(text)
    self.status = status


class MemoryPage:
  """Answers the requests of browsers, one at a time.

  Args:
    directory: of the memory, or its address on a server.
    admission: whose token browsers send as `Authorization: Api-Key TOKEN`; without one there are no changes, and only
      browsers of this machine are answered.
    changes: None where nobody may change the memory.
    episodes: folder of kept episodes, whose pictures are shown.
    host: that the server listens at.
    aside: whether the memory is read in another process: where this one serves a policy.
  """

  def __init__(self, directory, admission: Admission, *, changes: Changes | None = None,
               episodes: str | None = None, host: str = LOOPBACK[0], aside: bool = False):
    self._survey = SurveyAside(directory) if aside else Survey(directory)
    self._admission, self._changes, self._host = admission, changes, host
    self._name, self._kept = address.name_of(directory), None
    if episodes is not None:
      from pi0rag_jax.serving.pictures import KeptEpisodes  # robot data take libraries that a memory does without

      self._kept = KeptEpisodes(episodes)
    self._html = page.environment(_TEMPLATES).get_template("memory.html").render(name=self._name, path=PATH).encode()
    self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="memory page")
    self._waiting = 0
    self._acts: dict[str, Callable[[Asked], Mapping[str, Any]]] = {
      "overview": self._overview, "episodes": lambda asked: self._survey.ask("episodes", page=_number(asked, "page")),
      "records": self._records, "map": self._map,
      "record": lambda asked: self._survey.ask("record", identity=_number(asked, "id")),
      "pictures": self._pictures, "moments": lambda asked: self._allowed().labels.moments(asked.get("episode", "")),
      "moment": lambda asked: self._allowed().labels.moment(asked.get("episode", ""), _number(asked, "tick")),
      "label": self._label, "forget": lambda asked: self._allowed().forget(_ids(asked)),
      "undo": lambda asked: self._allowed().undo(asked.get("episode", ""))}

  @staticmethod
  def concerns(request: Request) -> bool:
    """Returns whether a request is this page's."""
    return (request.path.split("?")[0] + "/").startswith(f"{PATH}/")

  async def answer(self, request: Request) -> Response:
    """Returns the answer to a browser, whatever it asks."""
    if self._waiting >= MAX_WAITING:
      return _json(http.HTTPStatus.SERVICE_UNAVAILABLE, {"error": "too many ask at once: try again"})
    self._waiting += 1
    try:
      return await asyncio.get_running_loop().run_in_executor(self._worker, self._answer, request)
    finally:
      self._waiting -= 1

  def close(self) -> None:
    """Ends the thread, after what it does now."""
    self._worker.shutdown(cancel_futures=True)
    self._survey.close()

  def _answer(self, request: Request) -> Response:
    try:
      url = urlsplit(request.path)
      wanted = url.path.removeprefix(PATH).strip("/")
      self._check_browser(request)
      if not wanted:
        return _response(http.HTTPStatus.OK, "text/html; charset=utf-8", self._html)
      if not self._admission.knows(request):
        raise Refused(http.HTTPStatus.UNAUTHORIZED, "this server asks for its token")
      if wanted not in self._acts:
        raise Refused(http.HTTPStatus.NOT_FOUND, "there is nothing of this name")
      asked = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True,
                                                            max_num_fields=10).items()}
      return _json(http.HTTPStatus.OK, self._acts[wanted](asked))
    except Refused as error:
      return _json(error.status, {"error": str(error)})
    except Pi0RagError as error:
      return _json(http.HTTPStatus.CONFLICT, {"error": messages.shown(error)})
    except ValueError:
      return _json(http.HTTPStatus.BAD_REQUEST, {"error": "the request cannot be understood"})
    except Exception as error:  # whatever it is, the browser is told nothing of it, and the server goes on
      logger.error("The memory's page failed with a %s: %s", type(error).__name__, messages.shown(error))
      return _json(http.HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "the page failed: the server's log says more"})

  def _check_browser(self, request: Request) -> None:
    """Refuses other web pages, and names that somebody else's name server gives this machine."""
    here = "".join(request.headers.get_all("Host")[:1])
    if not set(request.headers.get_all("Origin")) <= {f"http://{here}", f"https://{here}"}:
      raise Refused(http.HTTPStatus.FORBIDDEN, "requests from other web pages are refused")
    if self._admission.token is None and self._host not in LOOPBACK:
      raise Refused(http.HTTPStatus.FORBIDDEN, "beyond its machine the page asks for a server with a --token")
    if self._admission.token is None and not names_this_machine(here):
      raise Refused(http.HTTPStatus.FORBIDDEN, f"the page is at {LOOPBACK[0]} only")

  def _allowed(self) -> Changes:
    if self._changes is None or self._why_not():
      raise Refused(http.HTTPStatus.FORBIDDEN, self._why_not())
    return self._changes

  def _why_not(self) -> str:
    """Returns why nothing can be changed, '' where it can."""
    if self._changes is None:
      return "this server only reads the memory: start it with --learn and a --token"
    return "" if self._admission.token is not None else "read-only: start the server with a --token to delete or undo"

  def _overview(self, asked: Asked) -> dict[str, Any]:
    del asked
    return {**self._survey.ask("overview"), "name": self._name, "pictures": self._kept is not None,
            "read_only": self._why_not()}

  def _records(self, asked: Asked) -> dict[str, Any]:
    given = {name: asked[name] for name in ("kind", "task", "episode", "sort") if name in asked}
    return self._survey.ask("records", **given, page=_number(asked, "page"))

  def _map(self, asked: Asked) -> dict[str, Any]:
    given = {name: asked[name] for name in ("kind", "task") if name in asked}
    return self._survey.ask("map", **given, chosen=_number(asked, "id") if "id" in asked else None)

  def _label(self, asked: Asked) -> Mapping[str, Any]:
    changes = self._allowed()
    gesture = changes.labels.gesture(asked.get("episode", ""), _number(asked, "tick"), _gesture(asked))
    return changes.label(gesture)

  def _pictures(self, asked: Asked) -> dict[str, Any]:
    return {"moments": [] if self._kept is None else self._kept.strip(asked.get("episode", ""))}


class PageServer:
  """Serves the page of a memory alone."""

  def __init__(self, shown: MemoryPage, admission: Admission, reserved: socket.socket):
    self._page, self._socket, self._clients = shown, reserved, Clients(admission)

  async def run(self, ready: Callable[[], object] = lambda: None) -> None:
    """Serves until the task is cancelled; `ready` is called once browsers can connect."""
    silent = logging.Logger("websockets", logging.CRITICAL + 1)
    with contextlib.closing(self._socket):
      async with serve(cast(Any, self._nobody), sock=self._socket, process_request=self._answer, logger=silent,
                       create_connection=cast(Any, functools.partial(Client, clients=self._clients))) as server:
        ready()
        await server.serve_forever()

  async def _answer(self, connection: ServerConnection, request: Request) -> Response:
    if (healthy := health_check(connection, request)) is not None:
      return healthy
    if not self._page.concerns(request):
      return _response(http.HTTPStatus.FOUND, "text/plain", b"", Location=PATH)
    return await self._page.answer(request)

  async def _nobody(self, connection: ServerConnection) -> None:
    """No request becomes a websocket."""


def run(directory, *, host: str = LOOPBACK[0], port: int = 0, token: str | None = None,
        episodes: str | None = None) -> None:
  """Serves the page of a memory until Ctrl-C; changes wait for nobody who writes the memory.

  Args:
    port: 0 takes a free one.
  Errors: Pi0RagError for no memory, a port that cannot be had, and where strangers could read without a token.
  """
  if token is None and host not in LOOPBACK:
    raise Pi0RagError(f"whoever reaches {host} could read the memory: give a --token, or listen at {LOOPBACK[0]}")
  admission = Admission(token=token)
  shown = MemoryPage(directory, admission, changes=FileChanges(directory, episodes), episodes=episodes, host=host)
  with contextlib.closing(shown), contextlib.suppress(KeyboardInterrupt):
    reserved = reserve(host, port)
    shown_at = f"http://{host}:{reserved.getsockname()[1]}{PATH}"
    server = PageServer(shown, admission, reserved)
    asyncio.run(server.run(lambda: print(f"The memory's page is at {shown_at} (Ctrl-C ends it)", flush=True)))


def _json(status: http.HTTPStatus, values: Mapping[str, Any]) -> Response:
  return _response(status, "application/json", json.dumps(values).encode())


def _response(status: http.HTTPStatus, kind: str, body: bytes, **more: str) -> Response:
  headers = page.HEADERS | {"Content-Type": kind, "Content-Length": str(len(body)), **more}
  return Response(status.value, status.phrase, Headers(headers), body)


def _number(asked: Asked, name: str) -> int:
  text = asked.get(name, "0")
  if not re.fullmatch(r"[0-9]{1,18}", text) or (name == "page" and int(text) > MAX_PAGE):
    raise Refused(http.HTTPStatus.BAD_REQUEST, f"{name} is no number that is allowed")
  return int(text)


def _gesture(asked: Asked) -> list[float]:
  try:
    return [float(text) for text in asked.get("gesture", "").split(",")[:MAX_ENTRIES]]
  except ValueError:
    raise Refused(http.HTTPStatus.BAD_REQUEST, "a gesture is numbers, one for each entry of the action") from None


def _ids(asked: Asked) -> list[int]:
  ids = [int(text) for text in asked.get("ids", "").split(",") if re.fullmatch(r"[0-9]{1,18}", text)]
  if not 0 < len(ids) <= MAX_IDS:
    raise Refused(http.HTTPStatus.BAD_REQUEST, f"say which records: 1 to {MAX_IDS} ids")
  return ids
