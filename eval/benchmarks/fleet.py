"""`fleet`: many robots that teach one memory on a PostgreSQL of this machine, in real time and as fast as it goes.

The robots are synthetic, an episode a minute each, 70 records an episode; everything else is what a fleet runs: a few
servers in processes of their own, each with a memory that it writes and an index that follows all others, and one more
reader. All share this machine's cores with PostgreSQL, which a fleet's would not.
"""

import argparse
import multiprocessing
import os
import pathlib
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import numpy as np

from eval import local_postgres
from eval.benchmarks.indices import EPISODE
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import Record

SERVERS = 4
TASKS = 10
FIELDS = {"key_dim": 106, "action_horizon": 16, "action_dim": 5, "encoder": "fleet", "policy": "fleet"}  # panda_small's
AS_FAST = 60.0  # seconds of the second part
LOOK_S = 0.005
CAPACITY = 1_000_000
PREPARED = 64  # episodes whose records are made before the clock runs


def fleet(flags: argparse.Namespace) -> Iterator[dict]:
  """Yields what writing at the robots' pace, and at the greatest, took; and what opening the result does."""
  with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    with local_postgres.running(pathlib.Path(folder)) as postgres:
      address = postgres.address("fleet")
      Memory.open(address, **FIELDS, capacity=CAPACITY).close()
      row = {"robots": flags.robots, "servers": SERVERS, "records_per_episode": EPISODE}
      yield {"what": "paced", **row, **_written(address, flags.minutes * 60, flags.robots / 60 / SERVERS)}
      yield {"what": "as fast as it goes", **row, **_written(address, AS_FAST, None)}
      began, before = time.perf_counter(), _resident_mb()
      with Memory.load(address, capacity=CAPACITY) as memory:
        found = {"records": len(memory), "opened_s": round(time.perf_counter() - began, 1),
                 "resident_MB": round(_resident_mb() - before, 1),
                 "bytes_on_server_per_record": round(memory.statistics()["bytes_on_disk"] / len(memory))}
      yield {"what": "a new reader", **row, **found}


def _written(address: str, seconds: float, episodes_per_s: float | None) -> dict:
  """Returns what the servers and a reader measured.

  Args:
    episodes_per_s: of each server; None is as fast as it goes.
  """
  context = multiprocessing.get_context("spawn")
  begin = context.Barrier(SERVERS + 2)
  ways = [context.Pipe() for _ in range(SERVERS + 1)]
  targets = [*((_serve, (address, number, seconds, episodes_per_s)) for number in range(SERVERS)),
             (_read, (address, seconds))]
  processes = [context.Process(target=target, args=(way[1], begin, *arguments), daemon=True)
               for way, (target, arguments) in zip(ways, targets)]
  for process in processes:
    process.start()
  begin.wait()
  busy = _busy_s()
  *written, seen = [way[0].recv() for way in ways]
  busy = _busy_s() - busy
  for process in processes:
    process.join()
  acked = np.sort(np.concatenate([times for times, _, _ in written]))
  taken_ms = 1000 * np.concatenate([taken for _, taken, _ in written])
  late_s = np.concatenate([late for _, _, late in written])
  elapsed_s = acked[-1] - acked[0]
  looked, counts = seen["looked"], seen["counts"]
  # The first look that shows as many records as had been acknowledged then.
  place = np.searchsorted(counts, counts[0] + EPISODE * np.arange(1, len(acked) + 1))
  lag_ms = 1000 * (looked[np.minimum(place, len(looked) - 1)] - acked)
  return {
    "episodes": len(acked), "records_per_s": round(EPISODE * (len(acked) - 1) / elapsed_s, 1),
    **_quantiles("ack_ms", taken_ms), **_quantiles("lag_ms", np.maximum(lag_ms, 0)),
    "lost": int(EPISODE * len(acked) - (counts[-1] - counts[0])),
    "late_s": round(float(late_s.max()), 2), "cores_busy": round(busy / max(elapsed_s, 1e-9), 2),
    "reader_MB": seen["resident_MB"]}


def _serve(way: Connection, begin, address: str, number: int, seconds: float, episodes_per_s: float | None) -> None:
  """Sends (when each episode was acknowledged, how long that took, how late it began), s."""
  rng = np.random.default_rng([number, int(seconds), episodes_per_s is None])
  episodes = [_episode(rng, number, place) for place in range(PREPARED)]
  with Memory.open(address, **FIELDS, capacity=CAPACITY) as memory:
    begin.wait()
    began, acked, taken, late = time.time(), [], [], []
    while True:
      due = began if episodes_per_s is None else began + len(acked) / episodes_per_s
      if max(due, time.time()) > began + seconds:
        break
      time.sleep(max(due - time.time(), 0))
      asked = time.time()
      name = f"{number} {seconds:g} {len(acked)} {episodes_per_s}"
      memory.add(episodes[len(acked) % PREPARED], token=name, outcomes=[([], [], True)])
      acked.append(time.time())
      taken.append(acked[-1] - asked)
      late.append(0.0 if episodes_per_s is None else asked - due)
    way.send((np.array(acked), np.array(taken), np.array(late)))


def _read(way: Connection, begin, address: str, seconds: float) -> None:
  """Sends when it looked, how many records it had then, and what it holds in memory."""
  with Memory.load(address, capacity=CAPACITY) as memory:
    looked, counts = [time.time()], [len(memory)]
    ended = threading.Event()
    begin.wait()
    stop = time.time() + seconds
    while not ended.wait(LOOK_S):
      now, count = time.time(), len(memory)
      if count != counts[-1]:
        looked.append(now)
        counts.append(count)
      elif now > stop + 5 and now > looked[-1] + 5:
        ended.set()
    way.send({"looked": np.array(looked), "counts": np.array(counts), "resident_MB": round(_resident_mb(), 1)})


def _episode(rng: np.random.Generator, server: int, place: int) -> list[Record]:
  shape = FIELDS["action_horizon"], FIELDS["action_dim"]
  keys_TE = rng.standard_normal((EPISODE, FIELDS["key_dim"])).astype(np.float32)
  chunks_TTA = rng.uniform(-0.01, 0.01, (EPISODE, *shape)).astype(np.float32)
  kinds = ["anchor", "correction"]
  return [
    Record(keys_TE[tick], chunks_TTA[tick], chunks_TTA[-tick], kinds[tick % 10 == 0], "success",
           task=f"{place % TASKS}", provenance={
             "source": "human", "robot": f"{server}-{place}", "episode": f"{place}", "tick": tick})
    for tick in range(EPISODE)]


def _quantiles(name: str, values) -> dict:
  shares = {"p50": 50, "p95": 95, "p99": 99}
  return {f"{name}_{share}": round(float(np.percentile(values, percent)), 1) for share, percent in shares.items()}


def _busy_s() -> float:
  """Returns the seconds that this machine's cores were busy since it started."""
  first = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]
  idle = int(first[3]) + int(first[4])
  return (sum(map(int, first[:8])) - idle) / os.sysconf("SC_CLK_TCK")


def _resident_mb() -> float:
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * resource.getpagesize() / 1e6
