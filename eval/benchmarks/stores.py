"""`stores`: a search of a memory in a file against one on a PostgreSQL of this machine, the same records in both.

Searches are of the index, which both stores feed: what they take is told apart by turns of single queries, while nobody
writes, while others do, and while the server is down.
"""

import argparse
import contextlib
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from eval import local_postgres
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import ANCHOR, CORRECTION, Memory, Record

FIELDS = {"key_dim": 512, "action_horizon": 50, "action_dim": 32, "encoder": "search", "policy": "none"}
SEARCHES, FOUND = 1500, 16  # queries of each store, records of each query
TOGETHER = 250  # records that are added at once
PAUSE_S = 0.25  # between the episodes of others: those of a fleet of 240 robots
LONGEST_S = 60.0


def stores(flags: argparse.Namespace) -> Iterator[dict]:
  """Yields the times of a search, with a file and with a server behind it, in ms."""
  with (tempfile.TemporaryDirectory(prefix="pi0rag_stores_") as folder, tempfile.TemporaryDirectory() as other,
        local_postgres.running(pathlib.Path(folder)) as server):
    rng, place = np.random.default_rng(0), server.address("search")
    with (Memory.open(pathlib.Path(other) / "memory", **FIELDS) as by_file, Memory.open(place, **FIELDS) as by_server,
          Memory.open(place, **FIELDS) as writer):
      for first in range(0, flags.records, TOGETHER):
        records = [_record(rng, number) for number in range(first, min(first + TOGETHER, flags.records))]
        by_file.add(records)
        writer.add(records)
      _wait(lambda: len(by_server) == flags.records)
      row = {"records": flags.records, "key_dim": FIELDS["key_dim"], "k": FOUND, "searches": SEARCHES}
      yield {"when": "idle", **row, **_in_turn(by_file, by_server, rng)}
      with _written(writer, rng):
        yield {"when": "while others write", **row, **_in_turn(by_file, by_server, rng)}
      server.kill()
      _wait(lambda: not by_server.statistics()["connected"])
      yield {"when": "while it is down", **row, **_in_turn(by_file, by_server, rng)}
      server.start()


def _record(rng: np.random.Generator, number: int) -> Record:
  base_TA = rng.standard_normal((FIELDS["action_horizon"], FIELDS["action_dim"]), np.float32)
  key_E = rng.standard_normal(FIELDS["key_dim"], np.float32)
  return Record(key_E, base_TA, base_TA + 0.1, (CORRECTION, ANCHOR)[number % 2], "success")


def _in_turn(by_file: Memory, by_server: Memory, rng: np.random.Generator) -> dict[str, float]:
  """Returns the times of single queries, one of each in turn, in ms, and the ratio of their medians."""
  times: dict[str, list[float]] = {"sqlite": [], "postgresql": []}
  for number in range(SEARCHES):
    key_BE = rng.standard_normal((1, FIELDS["key_dim"])).astype(np.float32)
    pair = [("sqlite", by_file), ("postgresql", by_server)]
    for name, memory in pair[:: 1 if number % 2 else -1]:
      began_s = time.perf_counter()
      memory.query(key_BE, FOUND)
      times[name].append(1000 * (time.perf_counter() - began_s))
  told = {f"{name}_p{share}_ms": round(float(np.percentile(spent, share)), 4) for name, spent in times.items()
          for share in (50, 95)}
  return told | {"ratio_p50": round(told["postgresql_p50_ms"] / told["sqlite_p50_ms"], 4)}


@contextlib.contextmanager
def _written(memory: Memory, rng: np.random.Generator) -> Iterator[None]:
  """Inside the block another writer adds an episode after another."""
  stop = threading.Event()

  def add() -> None:
    number = 0
    while not stop.wait(PAUSE_S):
      memory.add([_record(rng, number)], token=f"later {number}")
      number += 1

  thread = threading.Thread(target=add)
  thread.start()
  try:
    yield
  finally:
    stop.set()
    thread.join()


def _wait(done: Callable[[], bool]) -> None:
  deadline_s = time.monotonic() + LONGEST_S
  while not done():
    if time.monotonic() > deadline_s:
      raise Pi0RagError(f"what was waited for did not happen within {LONGEST_S:g} s")
    time.sleep(0.01)
