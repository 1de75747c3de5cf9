"""`retrieval`: what one search takes by records and key width, and what the memory adds to one decision.

The index is measured alone: a store of 10^6 records on disk would only measure the disk. Its chunks are of one number,
so that its bytes are those of the keys and of what it keeps about a record.
"""

import argparse
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from eval.benchmarks import memory
from pi0rag_jax.memory.index import MemoryIndex
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import CORRECTION, Header, Record
from pi0rag_jax.policy import compiling
from pi0rag_jax.robots import panda
from pi0rag_jax.steering import rules
from pi0rag_jax.steering.retrieval import Retriever

# Key and chunk sizes: the small policy's, and those that a pi0 checkpoint with projected keys has.
SIZES = {"panda_small": (106, 16, 5), "pi0": (512, 50, 32)}
RECORDS = (100, 1_000, 10_000)
DECISIONS = 300
WARM_UP = 50
K = rules.preset("residual").k
# Of a size of the index, searched in turn until this much time is gone, but once each at least.
QUERIES = 20
SEARCH_S = 3.0
SEARCHES = 500
BLOCK = 2048  # records that are drawn at once
RECORD_BYTES = 300  # Python's, beside the arrays: two integers and their place in a dictionary


def retrieval(flags: argparse.Namespace) -> list[dict]:
  """Returns a row for each size of the index, and one for each decision that was timed."""
  index = [_search_row(records, key_dim) for key_dim in flags.key_dims for records in flags.record_counts]
  return index + [_decision_row(name, count) for name in SIZES for count in RECORDS]


def _search_row(records: int, key_dim: int) -> dict:
  """Returns times, bytes and recall of an index, or why it was left out."""
  row = {"what": "search", "records": records, "key_dim": key_dim}
  header = Header(key_dim, 1, 1, "bench", "bench")
  needed = records * (MemoryIndex(header, 1).nbytes() + RECORD_BYTES) + 3 * BLOCK * key_dim * 4
  available = available_bytes()
  if needed > available:
    return row | {"left_out": f"needs {needed / 1e9:.3g} GB, {available / 1e9:.3g} GB of memory are available"}
  index = MemoryIndex(header, records)
  keys_BE = np.random.default_rng(1).standard_normal((QUERIES, key_dim), np.float32)
  wanted_BK = _fill(index, keys_BE)
  search = functools.partial(index.search, wanted={CORRECTION: K})
  found_BK = np.stack([search(key_E[None]).ids_BK[0] for key_E in keys_BE])
  recall = np.mean([len(np.intersect1d(*pair)) / wanted_BK.shape[1] for pair in zip(found_BK, wanted_BK)])
  taken_ms = _times(search, keys_BE)
  return row | {"k": K, "searches": len(taken_ms), **_quantiles("search", taken_ms),
                "index_MB": round(index.nbytes() / 1e6, 3), "recall": round(float(recall), 4)}


def available_bytes() -> int:
  """Returns the memory that can still be had; half of all of it where the system does not say."""
  try:
    lines = Path("/proc/meminfo").read_text().splitlines()
  except OSError:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
  return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def _fill(index: MemoryIndex, keys_BE) -> np.ndarray:
  """Returns int64[B, K]: of the records that the index now holds, the nearest to keys by exact float32 distance."""
  ids_BK, squared_BK = np.zeros((len(keys_BE), 0), np.int64), np.zeros((len(keys_BE), 0), np.float32)
  chunk_TA = np.zeros(index.header.chunk_shape)
  for first, block_ME in _blocks(index.capacity, index.header.key_dim):
    ids_M = np.arange(first, first + len(block_ME))
    for identity, key_E in zip(ids_M.tolist(), block_ME):
      index.add(identity, Record(key_E, chunk_TA, chunk_TA, CORRECTION, "success"))
    squared_BM = (block_ME**2).sum(axis=1) - 2 * keys_BE @ block_ME.T  # and what is the same for all records
    squared_BK = np.concatenate([squared_BK, squared_BM], axis=1)
    ids_BK = np.concatenate([ids_BK, np.broadcast_to(ids_M, squared_BM.shape)], axis=1)
    nearest_BK = np.argsort(squared_BK, axis=1)[:, :K]
    squared_BK, ids_BK = (np.take_along_axis(array, nearest_BK, axis=1) for array in (squared_BK, ids_BK))
  return ids_BK


def _blocks(records: int, key_dim: int) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (number of the first, float32[M, E]) of random keys, so that they are never all there in float32."""
  rng = np.random.default_rng(0)
  for first in range(0, records, BLOCK):
    yield first, rng.standard_normal((min(BLOCK, records - first), key_dim), np.float32)


def _times(search: Callable, keys_BE) -> list[float]:
  """Returns the ms of single searches."""
  taken_ms, start = [], time.perf_counter()
  while len(taken_ms) < len(keys_BE) or (len(taken_ms) < SEARCHES and time.perf_counter() - start < SEARCH_S):
    key_BE = keys_BE[len(taken_ms) % len(keys_BE)][None]
    begin = time.perf_counter()
    search(key_BE)
    taken_ms.append(1000 * (time.perf_counter() - begin))
  return taken_ms


def _decision_row(size: str, count: int) -> dict:
  """Returns the time that the memory adds to one decision (batch 1), in two parts and in all."""
  key_dim, horizon, action_dim = SIZES[size]
  with tempfile.TemporaryDirectory() as directory, Memory.open(
      directory, key_dim=key_dim, action_horizon=horizon, action_dim=action_dim, encoder="bench", policy="bench",
      capacity=max(RECORDS)) as records:
    memory.fill(records, count)
    return {"what": "decision", "size": size, "key_dim": key_dim, "horizon": horizon, "action_dim": action_dim,
            "records": count, "k": K, **_time_decisions(records, action_dim)}


def _time_decisions(records: Memory, action_dim: int) -> dict[str, float]:
  config = rules.preset("residual")
  space = panda.ACTIONS if action_dim == panda.DIM else memory.joints(action_dim)
  retriever = Retriever(records, config, space, unit_distance=float(np.sqrt(2 * records.header.key_dim)))
  steer = compiling.in_one_thread(functools.partial(rules.steer, config=config, space=space))
  base_BTA = jnp.zeros((1, *records.header.chunk_shape), jnp.float32)
  rng = np.random.default_rng(1)
  search_ms, steer_ms = [], []
  for _ in range(WARM_UP + DECISIONS):
    key_BE = rng.standard_normal((1, records.header.key_dim)).astype(np.float32)
    started = time.perf_counter()
    found = retriever(key_BE)
    searched = time.perf_counter()
    jax.block_until_ready(steer(base_BTA, {n: a for n, a in found.items() if n != "ids_BK"}))
    search_ms.append(1000 * (searched - started))
    steer_ms.append(1000 * (time.perf_counter() - searched))
  parts = {"retrieval": search_ms[WARM_UP:], "steer": steer_ms[WARM_UP:],
           "total": np.add(search_ms, steer_ms)[WARM_UP:]}
  return {name: ms for part, values in parts.items() for name, ms in _quantiles(part, values).items()}


def _quantiles(part: str, taken_ms) -> dict[str, float]:
  return {f"{part}_p{q}_ms": round(float(np.percentile(taken_ms, q)), 3) for q in (50, 95)}
