"""A Ray cluster: how this process connects to one, and what makes its nodes fit to work together.

Ray is imported only where it is asked for.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import logging
import os
import pathlib
import platform
import re
import secrets
import socket
from collections.abc import Iterator

from absl import flags

from pi0rag_jax import files
from pi0rag_jax.errors import Pi0RagError

AUTO, LOCAL = "auto", "local"
MARKER_NAME = ".ray_marker"
_PACKAGE = "pi0rag-jax"
_CODE = ("pi0rag_jax", "eval", "train")
_CONNECT_S = 5.0  # how long a head may take to answer
_STORE_BYTES = 100 * 2**20  # of a cluster of this machine's own: results are small

flags.disclaim_key_flags()  # so that --help of a command lists the flags that this file defines for it


@dataclasses.dataclass(frozen=True)
class Machines:
  """Where work runs: in this process, or in the actors of a Ray cluster."""

  address: str | None = None  # 'auto', 'local', or HOST:PORT of a cluster's head; None: here
  cpus: int = 1  # of each actor. Where the cluster has GPUs, an actor has one of them too

  def processes(self, wanted: int) -> int:
    """Returns how many processes simulate beside each policy: what an actor has of CPUs, less that of its policy."""
    return wanted if self.address is None else min(wanted, max(1, self.cpus - 1))


HERE = Machines()


def machines() -> Machines:
  """Returns what the flags of `define_flags` say."""
  return Machines(flags.FLAGS.ray, flags.FLAGS.ray_cpus)


def define_flags() -> None:
  """Defines `--ray` and `--ray_cpus` of a command."""
  flags.DEFINE_string("ray", None, "Run on a Ray cluster: 'auto' (the one that this machine is a node of), HOST:PORT, "
                      "or 'local' for one of this machine's own.")
  flags.DEFINE_integer("ray_cpus", 1, "CPUs of each of Ray's actors, which has a policy and its worlds.", lower_bound=1)


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
  """Connects this process to a Ray cluster; a 'local' one ends with the block. Errors: Pi0RagError for none there."""
  os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
  try:
    import ray
  except ImportError as error:
    raise Pi0RagError(f"--ray={address} needs Ray, which is not installed: pip install '{_PACKAGE}[ray]'") from error
  own = {"include_dashboard": False, "object_store_memory": _STORE_BYTES} if address == LOCAL else {}
  if address not in (AUTO, LOCAL):
    _knock(address)
  try:
    with _quiet():
      ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
  except (ConnectionError, RuntimeError, ValueError) as error:
    raise Pi0RagError(f"--ray={address}: {_reason(address, error)}") from error
  try:
    yield
  finally:
    ray.shutdown()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps what Ray's own threads write away from standard error, which Python cannot: why it fails is said once."""
  kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(nowhere, 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nowhere)


def _knock(address: str) -> None:
  """Raises Pi0RagError where nobody answers at an address: Ray itself would try for a minute."""
  host, colon, port = address.rpartition(":")
  if not colon or not port.isdigit() or "/" in host:
    raise Pi0RagError(f"--ray={address}; allowed: '{AUTO}', '{LOCAL}', or the head's HOST:PORT, such as 10.0.0.1:6379")
  try:
    socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
  except OSError as error:
    raise Pi0RagError(f"--ray={address}: no cluster answers there ({error.strerror or error}); one begins with `ray "
                      "start --head`") from error


def _reason(address: str, error: BaseException) -> str:
  """Returns why Ray did not connect, in one line."""
  line, why = " ".join(str(error).split()), [error]
  while (cause := why[-1].__cause__ or why[-1].__context__) is not None:
    why.append(cause)
  if any("AuthenticationError" in f"{type(one).__name__}: {one}" for one in why):
    return ("the cluster wants its token: copy ~/.ray/auth_token of its head to this machine, or set RAY_AUTH_TOKEN, "
            "and set RAY_AUTH_MODE=token")
  if "ersion mismatch" in line:
    return f"the cluster runs another version: {line}"
  if address == AUTO and "ould not find any running" in line:
    return ("this machine is no node of a running cluster; `ray start --address=HOST:PORT` joins one, `ray start "
            f"--head` begins one, and --ray={LOCAL} needs none")
  if "aylet" in line or "node_ip_address" in line:
    return f"this machine is no node of that cluster: `ray start --address={address}` first"
  return line


@contextlib.contextmanager
def marked(folder: pathlib.Path | None) -> Iterator[tuple[pathlib.Path, str] | None]:
  """Yields (a file in a folder, what it says), which is locked meanwhile; None for no folder."""
  if folder is None:
    yield None
    return
  path, text = folder.absolute() / MARKER_NAME, secrets.token_hex(8)
  files.write_text(path, text)
  with open(path, "rb") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
      yield path, text
    finally:
      path.unlink(missing_ok=True)


def trouble_with(path: pathlib.Path, text: str) -> str:
  """Returns what is wrong with the folder that holds a marker, '' where it is shared."""
  try:
    with open(path, "rb") as file:
      if file.read().decode() != text:
        return f"sees another folder at {path.parent} than the machine that drives it: use storage that all nodes share"
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return ""
  except OSError as error:
    return f"does not see {path.parent} ({error.strerror}): use storage that all nodes share"
  return f"does not see the locks that others hold in {path.parent}: mount it with locks that all nodes share"


def facts() -> dict[str, str]:
  """Returns what must be the same on all nodes: Python, this code, and every package of its that is installed."""
  root, digest = pathlib.Path(__file__).resolve().parent.parent, hashlib.sha256()
  for path in sorted(path for folder in _CODE for path in (root / folder).rglob("*.py")):
    digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
  found = {"Python": platform.python_version(), "the code of pi0rag_jax, eval and train": digest.hexdigest()[:12]}
  for requirement in importlib.metadata.requires(_PACKAGE) or ():
    name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found
