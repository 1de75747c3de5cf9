"""Kill test of servers: one that a memory steers is killed again and again, while clients ask it and another process
writes to its memory.

`python -m eval.server_durability --kills=50` prints a report as JSON; exit status 1 if a memory was not whole
afterwards, a writer was kept out, or the next server did not start and answer. Servers are the command itself.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import verify
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import CORRECTION, Record
from pi0rag_jax.policy import directory
from pi0rag_jax.serving.client import WebsocketClientPolicy

CLIENTS = 2
BATCH = 3  # records that are written at once
PAUSE_S = 0.1  # of the writer
KILLS_PER_MEMORY = 10
SERVING = "Serving at ws://127.0.0.1:"
_EARLY_SHARE = 0.3  # of the kills comes before the server serves
_EARLY_S = 8.0  # longest time to it
_LATE_S = 0.3  # longest time from the first answer to the kill
_PROMPT = "pick up the red cube"


@dataclasses.dataclass
class Report:
  """What came of all kills; `problems` is empty if each was harmless."""

  kills: int = 0
  killed_before_serving: int = 0
  answers: int = 0
  records: int = 0
  slowest_write_s: float = 0.0
  problems: list[str] = dataclasses.field(default_factory=list)


class Writer:
  """Adds records to a memory from a thread until it is closed."""

  def __init__(self, memory: Memory, report: Report):
    self._memory, self._report, self._ends = memory, report, threading.Event()
    self._thread = threading.Thread(target=self._write)
    self._thread.start()

  def _write(self) -> None:
    header, rng = self._memory.header, np.random.default_rng(7)
    while not self._ends.wait(PAUSE_S):
      base_TA = 0.01 * rng.standard_normal((header.action_horizon, header.action_dim))
      keys_NE = rng.standard_normal((BATCH, header.key_dim))
      began_s = time.monotonic()
      try:
        self._memory.add([Record(key_E, base_TA, 1.1 * base_TA, CORRECTION, "success") for key_E in keys_NE])
      except Pi0RagError as error:
        self._report.problems.append(f"the writer was kept out: {error}")
        return
      self._report.records += BATCH
      self._report.slowest_write_s = max(self._report.slowest_write_s, time.monotonic() - began_s)

  def close(self) -> None:
    self._ends.set()
    self._thread.join()


class Server:
  """A server process and the clients that ask it."""

  def __init__(self, policy: str, memory: pathlib.Path | None, log: pathlib.Path, *flags: str):
    command = [sys.executable, "-m", "pi0rag_jax.serving.server"]
    options = [f"--policy={policy}", *([f"--memory={memory}"] if memory else []), "--port=0", *flags]
    self._log = log
    with open(log, "w") as file:
      self._process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=file, text=True)

  def __enter__(self) -> "Server":
    return self

  def __exit__(self, *exception) -> None:
    self.end(signal.SIGKILL)
    self._process.__exit__(*exception)

  def port(self) -> int:
    """Returns where it serves, once it does. Errors: Pi0RagError when it ends before."""
    assert self._process.stdout is not None
    for line in self._process.stdout:
      if line.startswith(SERVING):
        return int(line.removeprefix(SERVING).split()[0])
    raise Pi0RagError(f"a server ended with status {self._process.wait()}: {self._log.read_text()[-500:]}")

  def alive(self) -> bool:
    return self._process.poll() is None

  def end(self, number: signal.Signals) -> int:
    """Returns its status after a signal."""
    self._process.send_signal(number)
    return self._process.wait()


def ask(client: WebsocketClientPolicy, observation: dict, answers: list[np.ndarray]) -> None:
  """Adds a server's answers to one observation until it is gone."""
  with contextlib.suppress(Pi0RagError):
    while True:
      answers.append(client.infer(observation)["actions"])


@contextlib.contextmanager
def asked(port: int, observation: dict) -> Iterator[list[np.ndarray]]:
  """Yields the answers, one at least, that clients get until their server is gone; it must be, when the block ends."""
  answers: list[np.ndarray] = []
  clients = [WebsocketClientPolicy("127.0.0.1", port) for _ in range(CLIENTS)]
  answers.append(clients[0].infer(observation)["actions"])
  threads = [threading.Thread(target=ask, args=[client, observation, answers]) for client in clients]
  for thread in threads:
    thread.start()
  try:
    yield answers
  finally:
    for thread, client in zip(threads, clients):
      thread.join()
      client.close()


def run(kills: int, seed: int, out: pathlib.Path, policy: str) -> Report:
  """Returns the report of so many kills; the last server of each memory is asked to end."""
  rng, report = np.random.default_rng(seed), Report()
  loaded = directory.load(policy)
  example = loaded.robot.example
  if example is None:
    raise Pi0RagError(f"policy '{policy}' has no example observation to ask with")
  observation = {**example(), "prompt": _PROMPT}
  while report.kills < kills:
    path = out / f"memory_{report.kills}"
    with Memory.open(path, **loaded.memory_header()) as memory:
      before = report.records
      for _ in range(min(KILLS_PER_MEMORY, kills - report.kills)):
        with Server(policy, path, out / "log") as server, contextlib.closing(Writer(memory, report)):
          _ask_and_kill(server, observation, rng, report)
        report.problems += [f"kill {report.kills}: {problem}" for problem in
                            check(memory, path, report.records - before)]
      with Server(policy, path, out / "log") as server:
        with asked(server.port(), observation) as answers:
          status = server.end(signal.SIGTERM)
        _check_answers(answers, report)
      if status:
        report.problems.append(f"a server that was asked to end did so with status {status}")
  return report


def _ask_and_kill(server: Server, observation: dict, rng: np.random.Generator, report: Report) -> None:
  """Kills a server at a random moment, while it starts or after its first answer."""
  if rng.random() < _EARLY_SHARE:
    time.sleep(rng.uniform(0.0, _EARLY_S))
    report.killed_before_serving += 1
    _kill(server, report)
    return
  with asked(server.port(), observation) as answers:
    time.sleep(rng.uniform(0.0, _LATE_S))
    _kill(server, report)
  _check_answers(answers, report)


def _kill(server: Server, report: Report) -> None:
  """Kills a server, which must run until then."""
  if not server.alive():
    report.problems.append(f"kill {report.kills}: the server had ended by itself")
  server.end(signal.SIGKILL)
  report.kills += 1


def _check_answers(answers: list[np.ndarray], report: Report) -> None:
  """Notes an answer that is no number or not the first one: a server's memory stays as it was at its start."""
  report.answers += len(answers)
  if not all(np.isfinite(actions_TA).all() and np.array_equal(actions_TA, answers[0]) for actions_TA in answers):
    report.problems.append(f"kill {report.kills}: answers to one observation differ")


def check(memory: Memory, path: pathlib.Path, written: int) -> list[str]:
  """Returns what is wrong with a memory after a kill."""
  problems = verify.verify(path) + memory.index_problems()
  if len(memory) != written:
    problems.append(f"{written} records were written, {len(memory)} are there")
  return problems


def main(argv: list[str] | None = None) -> int:
  """Runs the kill test and returns 1 if a kill did harm."""
  parser = argparse.ArgumentParser(prog="python -m eval.server_durability", description=__doc__)
  parser.add_argument("--kills", type=int, default=50)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--policy", default="panda_small")
  arguments = parser.parse_args(argv)
  started_s = time.monotonic()
  with tempfile.TemporaryDirectory(prefix="pi0rag_kill_") as directory_name:
    report = run(arguments.kills, arguments.seed, pathlib.Path(directory_name), arguments.policy)
  print(json.dumps(dataclasses.asdict(report) | {"wall_s": round(time.monotonic() - started_s, 1)}, indent=1))
  return 1 if report.problems else 0


if __name__ == "__main__":
  sys.exit(main())
