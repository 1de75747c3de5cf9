"""What a full memory costs: resident bytes of the process for store and index, and the time of one query.

`python -m pi0rag_jax.memory.footprint` prints one JSON object. It measures a process that fills the memory and
another that opens it, since their allocations differ. Linux only (/proc).
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import KINDS, Record

_BATCH = 100
_QUERIES = 1000
_WARM_UP = 50


def resident_bytes() -> int:
  """Returns the resident set of this process."""
  pages = int(Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE")


def measure(directory: str, arguments, *, fill: bool) -> dict[str, float]:
  """Returns the resident increase in MB (1e6 bytes) and query latencies of filling or of opening a memory."""
  rng = np.random.default_rng(0)
  _warm_up(arguments)
  before = resident_bytes()
  started_s = time.monotonic()
  with _open(directory, arguments) as memory:
    if fill:
      for _ in range(0, arguments.records, _BATCH):
        memory.add([_record(rng, i, arguments) for i in range(_BATCH)])
    gc.collect()
    ready_s = time.monotonic() - started_s
    latencies_ms = _query_latencies_ms(memory, rng, arguments.k)
    return {
      "resident_mb": round((resident_bytes() - before) / 1e6, 1),
      "accounted_mb": round(memory.memory_bytes() / 1e6, 1),
      "ready_s": round(ready_s, 2),
      "query_p50_ms": round(float(np.percentile(latencies_ms, 50)), 3),
      "query_p95_ms": round(float(np.percentile(latencies_ms, 95)), 3),
    }


def _query_latencies_ms(memory: Memory, rng: np.random.Generator, k: int) -> np.ndarray:
  """Returns the times of single queries with the chunks of k neighbours, after a warm-up."""
  times_ms = []
  for _ in range(_WARM_UP + _QUERIES):
    keys_BE = rng.standard_normal((1, memory.header.key_dim)).astype(np.float32)
    started_s = time.perf_counter()
    memory.query(keys_BE, k)
    times_ms.append((time.perf_counter() - started_s) * 1e3)
  return np.array(times_ms[_WARM_UP:])


def _warm_up(arguments) -> None:
  """Uses a tiny memory once, so that libraries' own buffers count as there before."""
  with tempfile.TemporaryDirectory() as directory, _open(directory, arguments, capacity=2) as memory:
    rng = np.random.default_rng(1)
    memory.add([_record(rng, i, arguments) for i in range(2)])
    memory.query(rng.standard_normal((1, arguments.key_dim)), arguments.k)


def _open(directory: str, arguments, capacity: int | None = None) -> Memory:
  horizon, dim = arguments.chunk
  return Memory.open(
    directory,
    key_dim=arguments.key_dim,
    action_horizon=horizon,
    action_dim=dim,
    encoder="footprint",
    policy="none",
    capacity=capacity or arguments.records,
    chunk_dtype=arguments.chunk_dtype,
  )


def _record(rng: np.random.Generator, i: int, arguments) -> Record:
  base_TA, corrected_TA = rng.standard_normal((2, *arguments.chunk), np.float32)
  key = rng.standard_normal(arguments.key_dim, np.float32)
  return Record(key, base_TA, corrected_TA, KINDS[i % 2], "success", task=f"task {i % 5}", prompt="pick it up")


def _chunk(text: str) -> tuple[int, int]:
  horizon, dim = (int(part) for part in text.split("x"))
  return horizon, dim


def main(argv: list[str] | None = None) -> int:
  """Prints the figures as JSON."""
  parser = argparse.ArgumentParser(prog="python -m pi0rag_jax.memory.footprint", description=__doc__)
  parser.add_argument("--records", type=int, default=10_000)
  parser.add_argument("--key_dim", type=int, default=512)
  parser.add_argument("--chunk", type=_chunk, default=(50, 32), metavar="TxA")
  parser.add_argument("--chunk_dtype", choices=("float16", "float32"), default="float16")
  parser.add_argument("--k", type=int, default=16)
  parser.add_argument("--opened", metavar="DIR", help=argparse.SUPPRESS)
  arguments = parser.parse_args(argv)
  if arguments.opened:
    print(json.dumps(measure(arguments.opened, arguments, fill=False)))
    return 0
  with tempfile.TemporaryDirectory(prefix="pi0rag_footprint_") as directory:
    filled = measure(directory, arguments, fill=True)
    given = sys.argv[1:] if argv is None else argv
    command = [sys.executable, "-m", "pi0rag_jax.memory.footprint", *given, "--opened", directory]
    opened = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
  print(json.dumps(vars(arguments) | {"filled": filled, "opened": opened}, indent=1, default=str))
  return 0


if __name__ == "__main__":
  sys.exit(main())
