"""Whom a policy server lets in, and how much of it strangers may take up."""

import dataclasses
import hmac
import http
import logging
import time
from collections.abc import Sequence

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.serving import messages

try:
  from websockets.asyncio.server import Request, Response, ServerConnection
  from websockets.exceptions import ProtocolError
  from websockets.frames import DATA_OPCODES
except ImportError as error:
  raise Pi0RagError(f"a policy server needs websockets: {messages.EXTRA}") from error

HEALTH_PATH = "/healthz"
ANY_ORIGIN = "*"
# Of answers to pings that a client does not read; bytes.
_MAX_UNREAD = 1 << 20
# In a second, of one client, pings and fragments among them: each takes 20 microseconds, however short.
_MAX_FRAMES = 256


@dataclasses.dataclass(frozen=True)
class Admission:
  """Who may connect, and the bounds for all who do."""

  token: str | None = None  # that clients send as `Authorization: Api-Key TOKEN`; None lets everybody in
  origins: Sequence[str] = ()  # of web pages whose browsers may connect; '*' is any
  connections: int = 64
  message_bytes: int = 1 << 24  # and twice as much of all messages together that are not answered, complete or not
  idle_s: float = 1800.0  # until a client that asks nothing, or takes no answer, is let go
  failed_s: float = 0.5  # before a mistake is answered: who makes nothing else keeps nobody waiting

  def refusal(self, request: Request) -> tuple[http.HTTPStatus, str] | None:
    """Returns why a client may not connect, as status and text; None lets it in."""
    origin = request.headers.get_all("Origin")
    if origin and ANY_ORIGIN not in self.origins and not set(origin) <= set(self.origins):
      return http.HTTPStatus.FORBIDDEN, "requests from web pages are refused: --allow_origin names those allowed\n"
    if not self.knows(request):
      return http.HTTPStatus.UNAUTHORIZED, "this server asks for a key: Authorization: Api-Key TOKEN\n"
    return None

  def knows(self, request: Request) -> bool:
    """Returns whether a client knows the key, if there is one."""
    return self.token is None or hmac.compare_digest(f"Api-Key {self.token}".encode(), self.key(request))

  def key(self, request: Request) -> bytes:
    """Returns the key that a client sends, b"" without one."""
    return "".join(request.headers.get_all("Authorization")[:1]).encode("utf8", "surrogateescape")


class Clients:
  """All connections of a server, and the bytes that each has sent and has no answer to yet.

  Beyond the limit the oldest unfinished message gives way, of those first who never got an answer: a robot's takes
  milliseconds to arrive. Where all are complete and wait for the policy, who sends more waits with them.
  """

  def __init__(self, admission: Admission):
    self.admission = admission
    self.open: dict[Client, None] = {}  # in the order in which they came
    self._unanswered: dict[Client, int] = {}  # bytes; the longest unanswered first
    self._paused: list[Client] = []

  def make_room(self) -> bool:
    """Returns whether another client may come; where all places are taken, the first that never got an answer goes."""
    admitted = [client for client in self.open if client.admitted]
    if len(admitted) < self.admission.connections:
      return True
    idle = next((client for client in admitted if not client.answers and not client.waits), None)
    if idle is None:
      return False
    idle.drop()
    return True

  def received(self, client: "Client", size: int) -> None:
    """Counts what a client sent."""
    self._unanswered[client] = self._unanswered.get(client, 0) + size
    total = sum(self._unanswered.values())
    for other in sorted(self._unanswered, key=lambda other: other.answers > 0):
      if total <= 2 * self.admission.message_bytes:
        return
      if other is not client and not other.waits:
        total -= self._unanswered.pop(other)
        other.drop()
    if total > 2 * self.admission.message_bytes:
      client.transport.pause_reading()
      self._paused.append(client)

  def answered(self, client: "Client", size: int | None = None) -> None:
    """Counts a message of a client as done; without a size, all that it sent."""
    left = self._unanswered.pop(client, 0) - (size if size is not None else 1 << 62)
    if left > 0:
      self._unanswered[client] = left
    paused, self._paused = self._paused, []
    for other in paused:
      if other in self.open:
        other.transport.resume_reading()


class Client(ServerConnection):
  """One connection, whose bytes are counted."""

  def __init__(self, *arguments, clients: Clients, **options):
    super().__init__(*arguments, **options)
    self._clients = clients
    self._second, self._frames = 0.0, 0
    self._receive_frame, self.protocol.recv_frame = self.protocol.recv_frame, self._count_frame
    self.admitted = False
    self.waits = False  # for the answer to a message that has arrived
    self.answers = 0

  def connection_made(self, transport) -> None:
    super().connection_made(transport)
    self._clients.open[self] = None
    # Those that are still shaking hands take descriptors too.
    if len(self._clients.open) > 4 * self._clients.admission.connections:
      self.drop()

  def connection_lost(self, exc: Exception | None) -> None:
    self._clients.open.pop(self, None)
    self._clients.answered(self)
    super().connection_lost(exc)
    self.protocol.reader.discard()  # megabytes, which would wait for the garbage collector
    self.protocol.recv_frame = self._receive_frame

  def data_received(self, data: bytes) -> None:
    self._clients.received(self, len(data))
    super().data_received(data)
    if self.transport.get_write_buffer_size() > _MAX_UNREAD:
      self.drop()

  def _count_frame(self, frame) -> None:
    """Lets a frame through to the protocol, which parses all that has arrived at once."""
    now = self.loop.time()
    if now - self._second > 1.0:
      self._second, self._frames = now, 0
    self._frames += 1
    if self._frames > _MAX_FRAMES:
      self.drop()
      raise ProtocolError(f"more than {_MAX_FRAMES} frames in a second")
    self._receive_frame(dataclasses.replace(frame))
    self.waits |= frame.fin and frame.opcode in DATA_OPCODES
    frame.data = b""  # the parser keeps it until the next one comes

  def done(self, message: bytes | str) -> None:
    """Counts a message, all of which has been read, as done."""
    size = len(message)
    self._clients.answered(self, size + 6 + (0 if size < 126 else 2 if size < 1 << 16 else 8))  # its frame's header
    self.waits = False

  def drop(self) -> None:
    """Ends the connection, after what is being written: asyncio logs every write to one that is lost."""
    self.admitted = False
    self.loop.call_soon(self.transport.abort)


class CalmLog:
  """A log in which nothing that strangers can repeat fills the disk: so many lines of a kind in a minute."""

  LINES, PERIOD_S = 20, 60.0

  def __init__(self, logger: logging.Logger):
    self._logger = logger
    self._seen: dict[str, tuple[float, int]] = {}  # text -> (beginning of its minute, lines since)

  def __call__(self, level: int, text: str, *arguments) -> None:
    """Writes a line; `text` is its kind, the arguments are escaped and cut."""
    began, lines = self._seen.get(text, (time.monotonic(), 0))
    missing = 0
    if time.monotonic() - began > self.PERIOD_S:
      began, lines, missing = time.monotonic(), 0, max(lines - self.LINES, 0)
    self._seen[text] = began, lines + 1
    if lines < self.LINES:
      more = f" ({missing} more such lines are left out)" if missing else ""
      self._logger.log(level, text + more, *map(messages.shown, arguments))


def health_check(connection: ServerConnection, request: Request) -> Response | None:
  """Returns the answer to a health check; None for another request."""
  return connection.respond(http.HTTPStatus.OK, "OK\n") if request.path == HEALTH_PATH else None
