"""Where a memory is: a folder, or a name on a PostgreSQL server, `postgresql://USER@HOST:PORT/DATABASE?memory=NAME`.

An address may carry a password, whatever shows it does so through `shown`.
"""

import argparse
import dataclasses
import os
import re
import stat
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.record import Header
from pi0rag_jax.memory.store import Store

EXAMPLE = "postgresql://robot@host:5432/fleet?memory=kitchen"
_SCHEMES = ("postgresql", "postgres")
_SECRET = ("password", "sslpassword")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclasses.dataclass(frozen=True, repr=False)
class ServerAddress:
  """A memory on a server. As text it is without passwords.

  Attributes:
    uri: what libpq is given.
    memory: the memory's name.
    version: that it is read at, for good; None follows what is written.
  """

  uri: str
  memory: str
  version: int | None = None

  def __str__(self) -> str:
    parts = urlsplit(self.uri)
    kept = [(name, value) for name, value in parse_qsl(parts.query) if name not in _SECRET]
    # Ours come first: they say which memory it is.
    ours = [("memory", self.memory)] + ([] if self.version is None else [("version", str(self.version))])
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit((parts.scheme, user.partition(":")[0] + at + host, parts.path, urlencode(ours + kept, safe="/"),
                       ""))

  __repr__ = __str__

  def whole(self) -> str:
    """Returns it with its passwords, for another process of ours."""
    ours = [("memory", self.memory)] + ([] if self.version is None else [("version", str(self.version))])
    return self.uri + ("&" if urlsplit(self.uri).query else "?") + urlencode(ours)

  def secrets(self) -> list[str]:
    """Returns the passwords in it, as they are written there and as they are meant."""
    parts = urlsplit(self.uri)
    written = [parts.netloc.rpartition("@")[0].partition(":")[2]]
    written += [pair.partition("=")[2] for pair in parts.query.split("&") if pair.partition("=")[0] in _SECRET]
    return sorted({form for text in written for form in (text, unquote(text)) if form}, key=len, reverse=True)


def on_server(address) -> bool:
  """Returns whether an address is one on a server."""
  if isinstance(address, ServerAddress):
    return True
  text = os.fspath(address)
  if isinstance(address, str):
    return text.startswith(tuple(f"{scheme}://" for scheme in _SCHEMES))
  if text.startswith(tuple(f"{scheme}:/" for scheme in _SCHEMES)):
    raise Pi0RagError("the address of a memory on a server was taken for a path: give it as text")
  return False


def locate(address) -> "Path | ServerAddress":
  """Returns where a memory is: its folder with `~` expanded, or its place on a server.

  Errors: Pi0RagError for an address on a server that names no memory, or one that no memory can have.
  """
  if not on_server(address):
    return Path(address).expanduser()
  if isinstance(address, ServerAddress):
    return address
  try:
    parts = urlsplit(address)
    asked = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
  except ValueError:
    raise Pi0RagError(f"the address of a memory on a server cannot be read: write it like {EXAMPLE}, with special "
                      "characters as %XX") from None
  ours = {name: value for name, value in asked if name in ("memory", "version")}
  query = urlencode([pair for pair in asked if pair[0] not in ours], safe="/")
  found = ServerAddress(urlunsplit((parts.scheme, parts.netloc, parts.path, query, "")), ours.get("memory", ""))
  if not _NAME.fullmatch(found.memory):
    wrong = f"'{found.memory[:63]}' is no name of a memory" if found.memory else "it names no memory"
    raise Pi0RagError(f"{dataclasses.replace(found, memory='NAME')}: {wrong}: letters, digits, '.', '_' and '-', at "
                      f"most 63, as in {EXAMPLE}")
  if "version" not in ours:
    return found
  if not re.fullmatch(r"\d{1,18}", ours["version"]):
    raise Pi0RagError(f"{found}: version is '{ours['version'][:20]}', must be a whole number of 0 or more")
  return dataclasses.replace(found, version=int(ours["version"]))


def shown(address) -> str:
  """Returns an address as everybody may see it, without passwords."""
  return str(locate(address)) if on_server(address) else os.fspath(address)


def name_of(address) -> str:
  """Returns a memory's own name: its folder's, or the one it has on its server."""
  place = locate(address)
  return place.resolve().name if isinstance(place, Path) else place.memory


def same_as(address) -> str:
  """Returns a text that is the same for all names of a folder, and for an address."""
  place = locate(address)
  return str(place.resolve() if isinstance(place, Path) else place)


def read(address):
  """Returns an address as it may be printed: a folder as it was given, another without its passwords when it is text.
  """
  return locate(address) if on_server(address) else address


def at_version(address, version: int | None):
  """Returns the address of a memory as it was at a version; None leaves it. Errors: Pi0RagError for a folder."""
  if version is None:
    return read(address)
  place = locate(address)
  if isinstance(place, Path):
    raise Pi0RagError(f"{address} is a folder, which has no versions: copy it, or put the memory on a server")
  return dataclasses.replace(place, version=version)


def with_credentials(address, file: str | None):
  """Returns the address with the passwords of a file, one line `host:port:database:user:password` for each.

  Errors: Pi0RagError for a file that is missing, or that others may read: libpq would leave it aside.
  """
  if file is None:
    return read(address)
  place, path = locate(address), Path(file).expanduser()
  if isinstance(place, Path):
    raise Pi0RagError(f"{address} is a folder: credentials are for a memory on a server")
  try:
    mode = path.stat().st_mode
  except OSError as error:
    raise Pi0RagError(f"the file of credentials {path} cannot be read: {error.strerror}") from None
  if not stat.S_ISREG(mode) or mode & 0o077:
    raise Pi0RagError(f"the file of credentials {path} may be read by others: chmod 600 it")
  parts = urlsplit(place.uri)
  query = urlencode([*parse_qsl(parts.query), ("passfile", str(path.resolve()))], safe="/")
  return dataclasses.replace(place, uri=urlunsplit(parts._replace(query=query)))


def add_flags(parser: argparse.ArgumentParser, *, versions: bool = True) -> None:
  """Adds the flags that concern a memory on a server; `given` reads them."""
  parser.add_argument("--memory_credentials", metavar="FILE",
                      help="passwords of a memory on a server, one line host:port:database:user:password for each")
  if versions:
    parser.add_argument("--memory_version", type=_version, metavar="N",
                        help="read a memory on a server as it was at this version, whatever is taught meanwhile")


def given(values):
  """Returns the address of `--memory` with what the flags of `add_flags` say, None where there is no memory."""
  version, credentials = getattr(values, "memory_version", None), getattr(values, "memory_credentials", None)
  if not values.memory:
    if version is not None or credentials is not None:
      raise Pi0RagError("--memory_version and --memory_credentials are of a --memory: give that too")
    return None
  return at_version(with_credentials(values.memory, credentials), version)


def beside(address) -> Path:
  """Returns the folder of what a process keeps beside a memory: its own folder, or one of this machine's for a server.
  """
  place = locate(address)
  if isinstance(place, Path):
    return place
  parts = urlsplit(place.uri)
  state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
  name = "_".join((parts.netloc.rpartition("@")[2] or "local", parts.path.strip("/") or "default", place.memory))
  return state / "pi0rag" / re.sub(r"[^A-Za-z0-9._-]", "-", name)


def open_store(address, header: Header | None = None, *, create: bool = True, read_only: bool = False,
               lock_timeout_s: float = 2.0) -> Store:
  """Returns the store of a memory. Errors and arguments: as `SqliteStore` and `PostgresStore`."""
  place = locate(address)
  if isinstance(place, Path):
    from pi0rag_jax.memory.sqlite_store import SqliteStore

    return SqliteStore(place, header, create=create, read_only=read_only, lock_timeout_s=lock_timeout_s)
  from pi0rag_jax.memory.postgres.store import PostgresStore

  return PostgresStore(place, header, create=create, read_only=read_only)


def stored_header(address) -> Header | None:
  """Returns the header of a memory, None if there is none. Errors: as `open_store`."""
  place = locate(address)
  if isinstance(place, Path):
    from pi0rag_jax.memory import sqlite_store

    return sqlite_store.stored_header(place)
  from pi0rag_jax.memory.postgres import store

  return store.stored_header(place)


def _version(text: str) -> int:
  if not re.fullmatch(r"\d{1,18}", text):
    raise argparse.ArgumentTypeError(f"'{text[:20]}' is no version, a whole number of 0 or more")
  return int(text)
