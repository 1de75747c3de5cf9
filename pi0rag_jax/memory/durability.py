"""Kill test: a process that adds records is killed again and again, and one that reads beside it; nothing that was
acknowledged may be missing, and no reader may see anything but a whole memory.

`python -m pi0rag_jax.memory.durability --runs=200` prints a report as JSON; exit status 1 if a run failed.
`eval.durability` kills streams, `eval.server_durability` servers.
"""

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from typing import IO

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import codec, verify
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import ANCHOR, CORRECTION, Header, Record
from pi0rag_jax.memory.sqlite_store import SqliteStore

HEADER = Header(key_dim=64, action_horizon=8, action_dim=7, encoder="durability", policy="none")
ROOMY, TIGHT = 20_000, 60  # capacities: nothing is evicted; something is at nearly every addition
_KILLS_PER_DIRECTORY = 5
_EARLY_SHARE = 0.25
_EARLY_S = 0.03  # longest time to the kill after the imports
_BESIDE_SHARE = 0.5  # of the runs wait for the reader's first reading
_LATE_S = 0.25  # longest time to the kill after the first acknowledgement
_COMPACT_EVERY = 11  # batches, so that kills also hit vacuuming and checkpoints
_LARGEST_BATCH = 6
_CORRECTION_BATCHES = range(0, 200, 20)


@dataclasses.dataclass
class Report:
  """What happened in all runs; `problems` is empty if the memory kept its promise."""

  runs: int = 0
  runs_evicting: int = 0
  killed_before_first_batch: int = 0
  batches_acknowledged: int = 0
  records_acknowledged: int = 0
  unacknowledged_batches_found_whole: int = 0
  readings: int = 0
  problems: list[str] = dataclasses.field(default_factory=list)


def batch_records(number: int) -> list[Record]:
  """Returns batch `number`, the same on every call: 1 to 6 records, corrections and anchors."""
  rng = np.random.default_rng((7, number))
  records = []
  for i in range(rng.integers(1, _LARGEST_BATCH + 1)):
    base_TA = rng.standard_normal(HEADER.chunk_shape)
    provenance = {"source": "policy", "batch": number, "item": i}
    key = rng.standard_normal(HEADER.key_dim)
    # Corrections stop before they fill a tight memory, which then would keep no new anchor at all.
    kind = CORRECTION if number in _CORRECTION_BATCHES else ANCHOR
    records.append(Record(key, base_TA, base_TA + 0.1, kind, "success", task="kill", provenance=provenance))
  return records


def write_forever(directory: str, first_batch: int, capacity: int, reopen: bool = False) -> None:
  """Adds batches and prints `number id,id,...` once each is durable, until the process is killed.

  Each batch is an episode in which the one before it had a say. `reopen` closes the memory after every batch.
  """
  print("ready", flush=True)
  number, ids = first_batch, []
  while True:
    with _open(directory, capacity) as memory:
      while True:
        ids = memory.add(batch_records(number), token=f"batch {number}", outcomes=[(ids, [1.0] * len(ids), True)])
        print(f"{number} {','.join(map(str, ids))}", flush=True)
        memory.record_use(ids)
        if number % _COMPACT_EVERY == 0:
          memory.compact()
        number += 1
        if reopen:
          break


def read_forever(directory: str) -> None:
  """Opens and verifies the memory again and again; prints what is wrong, a line that is empty if nothing is."""
  while True:
    try:
      store = SqliteStore(directory, read_only=True)
      with store.snapshot():
        problems = [] if store.clock()[0] == len(store.tokens()) else ["the clock is not the number of episodes"]
      Memory.load(directory).close()
      print("; ".join(problems + verify.verify(directory)), flush=True)
    except Pi0RagError as error:
      if "no memory in" not in str(error):  # not made yet
        print(error, flush=True)


def kill_once(
  directory: str, first_batch: int, capacity: int, rng: np.random.Generator, readings: list[str] | None = None
) -> dict[int, list[int]]:
  """Starts a writer, kills it at a random moment, and returns the ids it acknowledged by batch.

  With `readings` a reader runs beside it, is killed too, and what it printed is added there.
  """
  arguments = ["--first_batch", str(first_batch), "--capacity", str(capacity)]
  with contextlib.ExitStack() as stack:
    children = [stack.enter_context(_child(directory, *arguments))]
    if readings is not None:
      children.append(stack.enter_context(_child(directory, "--read")))
    text = _output(children[0]).readline()
    if readings is not None and rng.random() < _BESIDE_SHARE:
      readings.append(_output(children[1]).readline())
    # A quarter of the kills comes early, while the file is made, checked or indexed.
    if rng.random() < _EARLY_SHARE:
      time.sleep(rng.uniform(0, _EARLY_S))
    else:
      text += _output(children[0]).readline()
      time.sleep(rng.uniform(0, _LATE_S))
    ended = [child.poll() for child in children]
    for child in children[:: rng.choice((1, -1))]:
      child.kill()
    lines = (text + _output(children[0]).read()).split("\n")[1:-1]  # what follows the last newline was cut off
    if readings is not None:
      readings += _output(children[1]).read().split("\n")[:-1]
  if ended != [None] * len(ended):
    raise Pi0RagError(f"writer or reader ended by themselves with status {ended}")
  split = [line.split(" ") for line in lines]
  return {int(number): [int(i) for i in ids.split(",")] for number, ids in split}


def _child(directory: str, *options: str) -> subprocess.Popen:
  command = [sys.executable, "-m", "pi0rag_jax.memory.durability", "--child", directory, *options]
  return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _output(child: subprocess.Popen) -> IO[str]:
  assert child.stdout is not None
  return child.stdout


def check(memory: Memory, acknowledged: dict[int, list[int]], next_batch: int) -> tuple[list[str], bool]:
  """Returns (problems, whether the batch that was not acknowledged is there).

  Checks that each acknowledged record is there with its content (in a roomy memory; in a tight one the last
  batch, since earlier ones may be evicted), none is there twice, no batch is there in part, no id is
  unexplained, and that the index agrees with the store.
  """
  evicting = memory.capacity == TIGHT
  problems = memory.index_problems()
  found: dict[int, list[int]] = {}
  for identity, record in memory.records():
    number, item = record.provenance["batch"], record.provenance["item"]
    found.setdefault(number, []).append(identity)
    expected = batch_records(number)[item]
    if codec.digest(expected, HEADER) != codec.digest(record, HEADER):
      problems.append(f"record {identity} is not what batch {number} wrote")
    if number in acknowledged and acknowledged[number][item] != identity:
      problems.append(f"item {item} of batch {number} was acknowledged as {acknowledged[number][item]}, is {identity}")
  for number, ids in acknowledged.items():
    if found.get(number) != ids and not (evicting and (number < next_batch - 1 or next_batch in found)):
      problems.append(f"batch {number} was acknowledged as {ids}, found {found.get(number)}")
  strangers = set(found) - set(acknowledged) - {next_batch}
  if strangers:
    problems.append(f"batches {sorted(strangers)} were never written")
  if next_batch in found and len(found[next_batch]) != len(batch_records(next_batch)):
    problems.append(f"batch {next_batch} is there in part")
  if len(memory) > memory.capacity:
    problems.append(f"{len(memory)} records exceed the capacity {memory.capacity}")
  return problems, next_batch in found


def run(runs: int, seed: int) -> Report:
  """Returns the report of `runs` kills; every fifth starts a new directory, every other directory is tight."""
  rng = np.random.default_rng(seed)
  report = Report()
  while report.runs < runs:
    capacity = TIGHT if (report.runs // _KILLS_PER_DIRECTORY) % 2 else ROOMY
    with tempfile.TemporaryDirectory(prefix="pi0rag_kill_") as directory:
      acknowledged: dict[int, list[int]] = {}
      for _ in range(min(_KILLS_PER_DIRECTORY, runs - report.runs)):
        _kill_and_check(directory, capacity, acknowledged, rng, report)
  return report


def _kill_and_check(directory, capacity, acknowledged, rng, report: Report) -> None:
  """Kills one writer, checks what it left, and repeats its last batch; adds to `acknowledged` and `report`."""
  next_batch = len(acknowledged)
  readings: list[str] = []
  new = kill_once(directory, next_batch, capacity, rng, readings)
  acknowledged |= new
  name = f"run {report.runs}"
  report.runs += 1
  report.runs_evicting += capacity == TIGHT
  report.killed_before_first_batch += not new
  report.batches_acknowledged += len(new)
  report.records_acknowledged += sum(map(len, new.values()))
  next_batch = len(acknowledged)
  report.readings += len(readings)
  report.problems += [f"{name}, reader: {line.strip()}" for line in readings if line.strip()]
  try:
    with _open(directory, capacity) as memory:
      problems, whole = check(memory, acknowledged, next_batch)
      report.unacknowledged_batches_found_whole += whole
      # The client cannot know whether its last batch arrived: it repeats it, and it must be there once.
      # Every other one is taken back before.
      token, said = f"batch {next_batch}", acknowledged.get(next_batch - 1, [])
      if token in memory.tokens() and report.runs % 2:
        memory.undo(token)
      outcomes = [(said, [1.0] * len(said), True)]
      acknowledged[next_batch] = memory.add(batch_records(next_batch), token=token, outcomes=outcomes)
      problems += check(memory, acknowledged, next_batch + 1)[0]
      if not memory.episodes == len(memory.tokens()) == next_batch + 1:
        problems.append(f"{memory.episodes} episodes are counted, {len(memory.tokens())} of {next_batch + 1} are there")
    problems += verify.verify(directory)
  except Pi0RagError as error:
    problems = [f"cannot be opened: {error}"]
    acknowledged.setdefault(next_batch, [])
  report.problems += [f"{name}: {problem}" for problem in problems]


def _open(directory: str, capacity: int) -> Memory:
  return Memory.open(directory, **dataclasses.asdict(HEADER), capacity=capacity)


def main(argv: list[str] | None = None) -> int:
  """Runs the kill test and returns 1 if a promise was broken."""
  parser = argparse.ArgumentParser(prog="python -m pi0rag_jax.memory.durability", description=__doc__)
  parser.add_argument("--runs", type=int, default=200)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--child", metavar="DIR", help=argparse.SUPPRESS)
  parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
  parser.add_argument("--reopen", action="store_true", help=argparse.SUPPRESS)
  parser.add_argument("--first_batch", type=int, default=0, help=argparse.SUPPRESS)
  parser.add_argument("--capacity", type=int, default=ROOMY, help=argparse.SUPPRESS)
  arguments = parser.parse_args(argv)
  if arguments.read:
    read_forever(arguments.child)
  if arguments.child:
    write_forever(arguments.child, arguments.first_batch, arguments.capacity, arguments.reopen)
  started_s = time.monotonic()
  report = run(arguments.runs, arguments.seed)
  print(json.dumps(dataclasses.asdict(report) | {"wall_s": round(time.monotonic() - started_s, 1)}, indent=1))
  return 1 if report.problems else 0


if __name__ == "__main__":
  sys.exit(main())
