"""Kill test of a memory on a server: several robots write at once and others follow, while processes are killed.

`python -m eval.fleet_durability --minutes=10 --restarts=2 --out=FILE` lets writers write and kills PostgreSQL in
between; `--kills=500` kills the server, a writer and a reader in turn.
Each prints a report as JSON; exit status 1 if a promise was broken. It starts a PostgreSQL of its own.
"""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from eval import local_postgres
from pi0rag_jax import files
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import ANCHOR, CORRECTION, Header, Memory, Record, anew, codec, verify
from pi0rag_jax.memory.index import MemoryIndex
from pi0rag_jax.memory.record import KINDS
from pi0rag_jax.memory.store import UnreachableError

HEADER = Header(key_dim=64, action_horizon=8, action_dim=7, encoder="fleet", policy="none")
ADDRESS = "PI0RAG_FLEET_ADDRESS"  # of the children: nobody sees the environment of another user's process
CAPACITY = 1 << 17
_LARGEST_BATCH = 4
_EQUAL_S = 1.0  # how soon after the last commit everybody must be where the truth is
_LONGEST_S = 60.0
_CHECKED_EVERY = 50  # kills


@dataclasses.dataclass
class Report:
  """What happened; `problems` is empty if the memory kept its promise."""

  seconds: float = 0.0
  kills: dict[str, int] = dataclasses.field(default_factory=lambda: {"server": 0, "writer": 0, "reader": 0})
  episodes_acknowledged: int = 0
  records_acknowledged: int = 0
  versions: int = 0
  repeated_after_a_loss: int = 0  # calls that a writer had to make again with their token
  equal_after_s: list[float] = dataclasses.field(default_factory=list)  # of each process, after the last commit
  write_ms: dict[str, float] = dataclasses.field(default_factory=dict)
  problems: list[str] = dataclasses.field(default_factory=list)


def batch(robot: int, number: int) -> list[Record]:
  """Returns what an episode of a robot teaches, the same on every call."""
  rng = np.random.default_rng((7, robot, number))
  records = []
  for item in range(rng.integers(1, _LARGEST_BATCH + 1)):
    base_TA = rng.standard_normal(HEADER.chunk_shape)
    provenance = {"source": "policy", "robot": robot, "number": number, "item": item}
    # No two robots have the same clock.
    records.append(Record(rng.standard_normal(HEADER.key_dim), base_TA, base_TA + 0.1,
                          CORRECTION if number % 9 == 0 else ANCHOR, "success", task="fleet", provenance=provenance,
                          created=1e9 - 1000.0 * robot + number))
  return records


def write(place: str, robot: int, first: int, pause_s: float, orders: "queue.Queue[str]") -> None:
  """Adds episodes and prints `added NUMBER MS TRIES ids` for each that is durable, until told to stop."""
  with _opened(place) as memory:
    print("ready", flush=True)
    number, ids = first, []
    while orders.empty():
      began_s, tries = time.perf_counter(), 0
      while True:
        tries += 1
        with contextlib.suppress(UnreachableError):
          ids = memory.add(batch(robot, number), token=f"{robot} {number}", outcomes=[(ids, [1.0] * len(ids), True)])
          break
      spent_ms = 1000 * (time.perf_counter() - began_s)
      print("added", number, f"{spent_ms:.2f}", tries, ",".join(map(str, ids)), flush=True)
      number += 1
      time.sleep(pause_s)
    _answer(memory, orders)


def follow(place: str, orders: "queue.Queue[str]") -> None:
  """Follows, and searches as a robot does, until told to stop."""
  with _opened(place, read_only=True) as memory:
    print("ready", flush=True)
    key_BE = np.zeros((1, HEADER.key_dim), np.float32)
    while orders.empty():
      memory.query(key_BE, 16)
      time.sleep(0.05)
    _answer(memory, orders)


def _opened(place: str, **options: Any) -> Memory:
  """Returns the memory, once its server is there."""
  began_s = time.monotonic()
  while True:
    try:
      return Memory.open(place, **dataclasses.asdict(HEADER), capacity=CAPACITY, **options)
    except UnreachableError:
      if time.monotonic() - began_s > _LONGEST_S:
        raise
      time.sleep(0.05)


def _answer(memory: Memory, orders: "queue.Queue[str]") -> None:
  """Says what the index is, once it is as far as is asked."""
  orders.get()
  print("stopped", flush=True)
  version, began_s = int(orders.get()), time.monotonic()
  while memory.statistics().get("version", 0) < version and time.monotonic() - began_s < _LONGEST_S:
    time.sleep(0.005)
  print("state", f"{time.monotonic() - began_s:.3f}", state(memory), flush=True)


def state(memory: Memory) -> str:
  """Returns a text that tells two indices apart: what is searched, what it counts, and the clock."""
  found = hashlib.blake2b(digest_size=16)
  indexed: MemoryIndex = memory._index  # nothing but the index itself tells what a search goes by
  rows = np.concatenate([np.arange(indexed.region(kind).start, indexed.region(kind).stop) for kind in KINDS])
  rows = rows[np.argsort(indexed.ids_M[rows])]
  for column_M in (indexed.ids_M, indexed.uses_M, indexed.helped_M, indexed.hurt_M, indexed.episode_M):
    found.update(column_M[rows].tobytes())
  found.update(indexed.keys(rows).tobytes())
  found.update(repr((memory.episodes, memory.successes)).encode())
  return found.hexdigest()


class Child:
  """A process of this command, and what it printed."""

  def __init__(self, place: str, *options: str):
    command = [sys.executable, "-m", "eval.fleet_durability", *options]
    self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                    env=os.environ | {ADDRESS: place})
    self.lines: queue.Queue[str] = queue.Queue()
    self._reader = threading.Thread(target=self._read, daemon=True)
    self._reader.start()

  def _read(self) -> None:
    assert self.process.stdout is not None
    for line in self.process.stdout:
      if line.endswith("\n"):
        self.lines.put(line)
    self.lines.put("")

  def tell(self, order: str) -> None:
    """Gives it an order."""
    assert self.process.stdin is not None
    self.process.stdin.write(order + "\n")
    self.process.stdin.flush()

  def kill(self) -> None:
    """Kills it, and waits until all that it printed is in `lines`."""
    self.process.kill()
    self.process.wait()
    self._reader.join()

  def until(self, word: str, heard: Callable[[list[str]], None]) -> list[str]:
    """Returns the line that begins with a word; others go to `heard`. Errors: Pi0RagError where it ended before."""
    while True:
      line = self.lines.get(timeout=2 * _LONGEST_S).split(" ")
      if line[0].strip() == word:
        return line
      if line == [""]:
        raise Pi0RagError(f"a process ended by itself with status {self.process.wait()} before it said '{word}'")
      heard(line)


class Fleet:
  """Writers and readers of one memory, and what they acknowledged."""

  def __init__(self, place: str, writers: int, readers: int, pause_s: float):
    self._place, self._pause_s = place, pause_s
    self.acknowledged: dict[int, dict[int, list[int]]] = {robot: {} for robot in range(writers)}
    self.write_ms: list[float] = []
    self.repeated = 0
    self.writers = [self._writer(robot) for robot in range(writers)]
    self.readers = [Child(place, "--child=follow") for _ in range(readers)]

  def _writer(self, robot: int) -> Child:
    return Child(self._place, "--child=write", f"--robot={robot}", f"--first={len(self.acknowledged[robot])}",
                 f"--pause_s={self._pause_s}")

  def hear(self, robot: int, line: list[str]) -> None:
    """Takes down what a writer says."""
    if line[0] == "added":
      _, number, spent_ms, tries, ids = line
      self.acknowledged[robot][int(number)] = [int(identity) for identity in ids.split(",")]
      self.write_ms.append(float(spent_ms))
      self.repeated += int(tries) > 1

  def listen(self) -> None:
    """Takes down what was said so far."""
    for robot, child in enumerate(self.writers):
      while not child.lines.empty():
        line = child.lines.get().split(" ")
        if line == [""]:
          raise Pi0RagError(f"writer {robot} ended by itself with status {child.process.wait()}")
        self.hear(robot, line)

  def kill_writer(self, robot: int) -> None:
    """Kills a writer, and starts one that repeats what may not have arrived."""
    self.writers[robot].kill()
    while line := self.writers[robot].lines.get():
      self.hear(robot, line.split(" "))
    self.writers[robot] = self._writer(robot)

  def kill_reader(self, place: int) -> None:
    """Kills a reader and starts another."""
    self.readers[place].kill()
    self.readers[place] = Child(self._place, "--child=follow")

  def stop(self) -> None:
    """Ends all writing."""
    for child in self.writers:
      child.tell("stop")
    for robot, child in enumerate(self.writers):
      child.until("stopped", lambda line, robot=robot: self.hear(robot, line))
    for child in self.readers:
      child.tell("stop")

  def states(self, version: int) -> list[tuple[float, str]]:
    """Returns after what time each process was at a version, and its state then."""
    children = [*self.writers, *self.readers]
    for child in children:
      child.tell(str(version))
    lines = [child.until("state", lambda line: None) for child in children]
    return [(float(line[1]), line[2].strip()) for line in lines]

  def close(self) -> None:
    """Ends all processes."""
    for child in [*self.writers, *self.readers]:
      child.kill()


def check(place: str, acknowledged: dict[int, dict[int, list[int]]], *, whole: bool) -> list[str]:
  """Returns where the truth is not what was acknowledged.

  Each acknowledged record is there once, under the id that was told, with its contents; nothing is there that nobody
  wrote; versions and ids have no gaps.

  Args:
    whole: nothing is under way any more: what was never acknowledged may not be there.
  """
  contents, problems = anew.read(place), verify.verify(place) if whole else []
  found: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
  for identity, record in contents.records.items():
    robot, number, item = (record.provenance[name] for name in ("robot", "number", "item"))
    found[robot, number].append(identity)
    if codec.digest(record, HEADER) != codec.digest(batch(robot, number)[item], HEADER):
      problems.append(f"record {identity} is not what robot {robot} wrote as {item} of {number}")
  for robot, numbers in acknowledged.items():
    for number, ids in numbers.items():
      if found.get((robot, number)) != ids:
        problems.append(f"{number} of robot {robot} was acknowledged as {ids}, found {found.get((robot, number))}")
    later = sorted(number for other, number in found if other == robot and number not in numbers)
    under_way = [] if whole else list(range(len(numbers), len(numbers) + len(later)))
    if later != under_way:
      problems.append(f"{later} of robot {robot} are there and were not acknowledged")
  if list(contents.records) != list(range(1, len(contents.records) + 1)):
    problems.append("ids have gaps")
  return problems


def run(server: local_postgres.LocalPostgres, arguments) -> Report:
  """Returns the report of writers, readers and kills."""
  place, report = server.address("fleet"), Report()
  rng = np.random.default_rng(arguments.seed)
  Memory.open(place, **dataclasses.asdict(HEADER)).close()
  fleet = Fleet(place, arguments.writers, arguments.readers, arguments.pause_s)
  began_s = time.monotonic()
  try:
    for child in [*fleet.writers, *fleet.readers]:
      child.until("ready", lambda line: None)
    if arguments.kills:
      _kill_in_turn(server, fleet, rng, report, arguments)
    else:
      _kill_servers(server, fleet, rng, report, arguments)
    fleet.stop()
    version = _version(place)
    for waited_s, found in fleet.states(version):
      report.equal_after_s.append(waited_s)
      if waited_s > _EQUAL_S:
        report.problems.append(f"a process was where the truth is {waited_s:.2f} s after the last commit")
      with Memory.load(place, capacity=CAPACITY) as truth:
        if found != state(truth):
          report.problems.append("a process searches something else than the truth")
    report.problems += check(place, fleet.acknowledged, whole=True)
  finally:
    fleet.close()
  report.seconds, report.versions, report.repeated_after_a_loss = time.monotonic() - began_s, version, fleet.repeated
  report.episodes_acknowledged = sum(map(len, fleet.acknowledged.values()))
  report.records_acknowledged = sum(len(ids) for numbers in fleet.acknowledged.values() for ids in numbers.values())
  report.write_ms = {f"p{share}": round(float(np.percentile(fleet.write_ms, share)), 2) for share in (50, 95, 99)}
  if report.versions != report.episodes_acknowledged:
    report.problems.append(f"{report.versions} versions for {report.episodes_acknowledged} acknowledged episodes")
  return report


def _kill_servers(server, fleet: Fleet, rng, report: Report, arguments) -> None:
  """Lets them write for some minutes, in which the server is killed a few times at random moments."""
  seconds = 60 * arguments.minutes
  moments = sorted(rng.uniform(0.1 * seconds, 0.9 * seconds, arguments.restarts))
  began_s = time.monotonic()
  for moment_s in [*moments, seconds]:
    while time.monotonic() - began_s < moment_s:
      time.sleep(min(1.0, max(0.0, moment_s - time.monotonic() + began_s)))
      fleet.listen()
    if moment_s < seconds:
      server.kill()
      report.kills["server"] += 1
      time.sleep(rng.uniform(0.5, 3.0))
      server.start()
      print(f"server killed and started again after {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)


def _kill_in_turn(server, fleet: Fleet, rng, report: Report, arguments) -> None:
  """Kills the server, a writer and a reader in turn, and looks at the truth in between."""
  place = server.address("fleet")
  for number in range(arguments.kills):
    time.sleep(rng.uniform(0.05, 1.5))
    victim = ("server", "writer", "reader")[number % 3]
    report.kills[victim] += 1
    if victim == "server":
      server.kill()
      server.start()
    elif victim == "writer":
      fleet.kill_writer(int(rng.integers(len(fleet.writers))))
    else:
      fleet.kill_reader(int(rng.integers(len(fleet.readers))))
    fleet.listen()
    if (number + 1) % _CHECKED_EVERY == 0:
      acknowledged = {robot: dict(numbers) for robot, numbers in fleet.acknowledged.items()}
      report.problems += check(place, acknowledged, whole=False)
      print(f"{number + 1} kills, {sum(map(len, acknowledged.values()))} episodes, {len(report.problems)} problems",
            file=sys.stderr, flush=True)


def _version(place: str) -> int:
  with Memory.load(place, capacity=CAPACITY) as truth:
    return truth.statistics()["version"]


def _child(arguments) -> int:
  orders: queue.Queue[str] = queue.Queue()

  def listen() -> None:
    for line in sys.stdin:
      orders.put(line.strip())

  threading.Thread(target=listen, daemon=True).start()
  place = os.environ[ADDRESS]
  if arguments.child == "write":
    write(place, arguments.robot, arguments.first, arguments.pause_s, orders)
  else:
    follow(place, orders)
  return 0


def main(argv: list[str] | None = None) -> int:
  """Runs what is asked and returns 1 if a promise was broken."""
  parser = argparse.ArgumentParser(prog="python -m eval.fleet_durability", description=__doc__)
  parser.add_argument("--minutes", type=float, default=10.0, help="of writing (default 10)")
  parser.add_argument("--restarts", type=int, default=2, help="of the server in this time (default 2)")
  parser.add_argument("--kills", type=int, default=0, help="of server, writer and reader in turn, instead")
  parser.add_argument("--writers", type=int, default=8)
  parser.add_argument("--readers", type=int, default=2)
  parser.add_argument("--pause_s", type=float, default=0.25, help="of a writer after an episode (default 0.25)")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", metavar="FILE", help="for the report")
  parser.add_argument("--child", choices=("write", "follow"), help=argparse.SUPPRESS)
  parser.add_argument("--robot", type=int, default=0, help=argparse.SUPPRESS)
  parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
  arguments = parser.parse_args(argv)
  if arguments.child:
    return _child(arguments)
  with (tempfile.TemporaryDirectory(prefix="pi0rag_fleet_") as folder,
        local_postgres.running(pathlib.Path(folder)) as server):
    report = dataclasses.asdict(run(server, arguments))
  report = {name: getattr(arguments, name) for name in ("writers", "readers", "pause_s", "seed")} | report
  if arguments.out:
    files.write_json(arguments.out, report)
  print(json.dumps(report, indent=1))
  return 1 if report["problems"] else 0


if __name__ == "__main__":
  sys.exit(main())
