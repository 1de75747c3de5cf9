"""Kill test of sweeps on Ray: nodes and drivers are killed, and what comes out must be the sweep that nobody disturbed.

`python -m eval.ray_durability --out=FILE.json` runs a sweep in one process; then the same one on two Ray nodes of this
machine. Begun without Ray and killed, it goes on on both nodes. Actors are killed while streams learn, then a node with
all its workers, then the driver, which is started again and killed once more; the sweep ends without Ray. What happened
is printed as JSON; exit status 1 if records, memories or summary differ, or an episode is in the log twice.
"""

import argparse
import collections
import contextlib
import importlib.metadata
import json
import os
import pathlib
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from eval import durability, provenance, records
from eval.experiment import RECORDS_NAME
from eval.worker import JOURNAL_NAME
from pi0rag_jax import files

CONFIG = ["--config=configs/quickstart.py", "--config.policy=panda_small",
          "--config.conditions=('camera_shift', 'wrist_camera_turn')", "--config.stream.episodes=24",
          "--config.stream.checkpoints=(12,)", "--config.stream.corrected_max=12", "--config.evaluation.episodes=32",
          "--config.evaluation.clips=1", "--config.evaluation.latency_episodes=1", "--config.slots=8",
          "--config.processes=1"]
# When what is killed, as the share of the sweep's episodes that are logged by then.
HERE_UNTIL, NODE_UNTIL, DRIVER_UNTIL, AGAIN_UNTIL = 0.1, 0.35, 0.6, 0.85
_WAIT_S = 1800.0
_TIMES = ("latency", "seconds", "timestamp", "wall_clock", "fitted_s")  # in the names of what a clock says


def differences(out: pathlib.Path, whole: pathlib.Path) -> list[str]:
  """Returns in what a sweep differs from another one, but for what clocks say."""
  found = []
  here, there = (_records(folder) for folder in (out, whole))
  if here != there:
    found.append(f"{sum(here.get(key) != there.get(key) for key in here.keys() | there.keys())} records")
  if twice(out):
    found.append(f"{twice(out)} episodes are in the log twice")
  for folder in sorted((whole / "memory").iterdir()):
    mine, its = (durability.content(place, folder.name) for place in (out / "memory", whole / "memory"))
    found += [f"{table} of the memory {folder.name}" for table in its if mine[table] != its[table]]
  summaries = [timeless(json.loads((folder / "summary.json").read_text())) for folder in (out, whole)]
  found += [f"{part} of the summary" for part in summaries[1] if summaries[0][part] != summaries[1][part]]
  return found


def twice(out: pathlib.Path) -> int:
  """Returns how many episodes of a log are in it before."""
  return sum(count - 1 for count in _lines(out).values())


def timeless(values: Any) -> Any:
  """Returns values without what a clock says."""
  if isinstance(values, dict):
    return {name: timeless(value) for name, value in values.items() if not any(word in name for word in _TIMES)}
  return [timeless(value) for value in values] if isinstance(values, list) else values


def _records(out: pathlib.Path) -> dict[Any, Any]:
  return {records.key(record): timeless(json.loads(json.dumps(record.__dict__)))
          for record in records.read_records(out / RECORDS_NAME)}


def _lines(out: pathlib.Path) -> collections.Counter:
  """Returns how often each episode is in a log."""
  names = ("phase", "policy", "task", "condition", "stream", "stream_episodes", "seed")
  lines = map(json.loads, files.whole_lines(out / RECORDS_NAME))
  return collections.Counter(tuple(line.get(name) for name in names) for line in lines)


class Cluster:
  """A head and a second node of a Ray cluster, both on this machine."""

  def __init__(self, folder: pathlib.Path):
    self._folder, self._nodes = folder, []
    self.address = ""

  def __enter__(self) -> "Cluster":
    with socket.socket() as free:
      free.bind(("", 0))
      port = free.getsockname()[1]
    try:
      said = self.start("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self._folder}")
      self.address = re.findall(rf"[\w.]+:{port}", said)[0]  # Ray chooses the machine's address
      self.start(f"--address={self.address}")
    except BaseException:
      self.__exit__()
      raise
    return self

  def __exit__(self, *_) -> None:
    for number in reversed(range(len(self._nodes))):
      if self._nodes[number].poll() is None:
        self.kill(number)

  def start(self, *arguments: str) -> str:
    """Starts a node of one CPU; returns what it said once it is there."""
    log = self._folder / f"node_{len(self._nodes)}.log"
    command = ["ray", "start", "--block", "--num-cpus=1", "--disable-usage-stats",
               f"--object-store-memory={10**8}", *arguments]
    with log.open("wb") as file:
      self._nodes.append(subprocess.Popen(
        [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *command[1:]], stdout=file,
        stderr=file, start_new_session=True))
    began = time.monotonic()
    while b"Ray runtime started" not in log.read_bytes():
      if time.monotonic() - began > 120 or self._nodes[-1].poll() is not None:
        raise RuntimeError(f"Ray did not start: {log.read_text()}")
      time.sleep(0.2)
    return log.read_text()

  def kill_actors(self) -> int:
    """Ends all actors by SIGKILL; returns how many there were."""
    found = [process for node in self._nodes for process in actors(node.pid)]
    for process in found:
      os.kill(process, signal.SIGKILL)
    return len(found)

  def kill(self, number: int) -> int:
    """Ends a node and all that runs on it by SIGKILL; returns how many processes that were."""
    node = self._nodes[number]
    family = descendants(node.pid)
    for process in family:
      with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    node.wait()
    return len(family)


def descendants(process: int) -> list[int]:
  """Returns a process and all that it began, directly or not."""
  children = collections.defaultdict(list)
  for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    with contextlib.suppress(OSError):
      # After the name, which may hold anything: state and parent.
      children[int(stat.read_text().rpartition(")")[2].split()[1])].append(int(stat.parent.name))
  found = [process]
  for one in found:
    found += children[one]
  return found


def actors(process: int) -> list[int]:
  """Returns the processes of a crew's actors among the descendants of one."""
  found = []
  for one in descendants(process):
    with contextlib.suppress(OSError):
      if pathlib.Path(f"/proc/{one}/cmdline").read_bytes().startswith(b"ray::_Hand"):
        found.append(one)
  return found


class Trial:
  """A sweep that is disturbed, and what was done to it."""

  def __init__(self, out: pathlib.Path, config: list[str], total: int):
    self._out, self._config, self._total = out, config, total
    self.events: list[dict[str, Any]] = []

  @contextlib.contextmanager
  def driver(self, *arguments: str) -> Iterator[subprocess.Popen]:
    """Runs the command while the block does; its end kills it if it still runs."""
    self._out.mkdir(parents=True, exist_ok=True)
    with (self._out / "driver.log").open("ab") as log:
      process = subprocess.Popen([sys.executable, "-m", "eval.sweep", *self._config, f"--out={self._out}", *arguments],
                                 stdout=log, stderr=log, start_new_session=True)
    try:
      yield process
    finally:
      if process.poll() is None:
        process.kill()  # the driver alone: what it began has to notice
      process.wait()

  def wait(self, process: subprocess.Popen, share: float) -> None:
    """Returns once that share of the episodes is logged; raises if the driver ends before."""
    self._wait(process, lambda: self._logged() >= share * self._total)

  def wait_for_learning(self, process: subprocess.Popen, count: int) -> None:
    """Returns once so many streams have episodes under way; raises if the driver ends before."""
    self._wait(process, lambda: sum(path.stat().st_size > 0 for path in self._out.glob(f"memory/*/{JOURNAL_NAME}"))
               >= count)

  def _wait(self, process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not condition():
      if process.poll() is not None or time.monotonic() - began > _WAIT_S:
        raise RuntimeError(f"the sweep ended at {self._logged()} of {self._total} episodes, or stands still: "
                           f"{(self._out / 'driver.log').read_text()[-2000:]}")
      time.sleep(0.05)

  def note(self, event: str, **facts: Any) -> None:
    """Writes down what was done."""
    self.events.append({"event": event, "episodes_logged": self._logged(), **facts})
    print(f"{self._logged()} of {self._total}: {event}", file=sys.stderr, flush=True)

  def _logged(self) -> int:
    log = self._out / RECORDS_NAME
    return log.read_bytes().count(b"\n") if log.exists() else 0


def disturb(trial: Trial, folder: pathlib.Path) -> None:
  """Runs a sweep to its end through every kind of kill."""
  with trial.driver() as process:
    trial.wait(process, HERE_UNTIL)
  trial.note("began without Ray; that process was killed")
  with Cluster(folder) as cluster:
    ray = f"--ray={cluster.address}"
    with trial.driver(ray) as process:
      trial.wait_for_learning(process, 2)
      trial.note("all actors were killed while two streams learned", processes=cluster.kill_actors())
      trial.wait(process, NODE_UNTIL)
      trial.note("the second node was killed", processes=cluster.kill(1))
      trial.wait(process, DRIVER_UNTIL)
    trial.note("the driver was killed")
    cluster.start(f"--address={cluster.address}")
    with trial.driver(ray) as process:
      trial.wait(process, AGAIN_UNTIL)
    trial.note("started again on two nodes; the driver was killed again")
  with trial.driver() as process:
    if process.wait():
      raise RuntimeError("the sweep did not come to its end")
  trial.note("ended without Ray")


def main(argv: list[str] | None = None) -> int:
  """Runs the kill test and returns 1 if the sweep came out otherwise."""
  parser = argparse.ArgumentParser(prog="python -m eval.ray_durability", description=__doc__)
  parser.add_argument("--out", type=pathlib.Path, help="file of the report")
  parser.add_argument("--keep", type=pathlib.Path, help="folder of both sweeps; without it they are removed")
  arguments, changes = parser.parse_known_args(argv)
  config = [*CONFIG, *changes]
  # Ray's nodes and drivers have a token in common, and nobody else does.
  os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
  with contextlib.ExitStack() as stack:
    folder = arguments.keep or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pi0rag_ray_")))
    whole, out = folder / "whole", folder / "disturbed"
    undisturbed = Trial(whole, config, 0)
    with undisturbed.driver() as process:
      if process.wait():
        raise RuntimeError((whole / "driver.log").read_text()[-2000:])
    total, began = len(_lines(whole)), time.monotonic()
    trial = Trial(out, config, total)
    disturb(trial, pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ray_"))))
    problems = differences(out, whole)
    report = {"episodes": total, "in_the_log_twice": twice(out),
              "actors_replaced": (out / "driver.log").read_text().count("was lost")}
  report |= {"events": trial.events, "problems": problems, "wall_s": round(time.monotonic() - began, 1),
             "configuration": config, "versions": provenance.versions() | {"ray": importlib.metadata.version("ray")},
             "hardware": provenance.hardware()}
  print(json.dumps(report, indent=1))
  if arguments.out:
    files.write_json(arguments.out, report)
  return 1 if problems else 0


if __name__ == "__main__":
  sys.exit(main())
