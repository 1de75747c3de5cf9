"""`indices`: what a search takes, and what it misses, in memories far beyond one robot's: exact, IVF and HNSW.

The index of a memory is exact (`memory.index`, float16). The others are FAISS's, over the same float16 numbers. Keys
are drawn as robots make them: episodes of 70 decisions, each a smooth path near the path of its task.
"""

import argparse
import math
import time
from collections.abc import Iterator

import faiss
import numpy as np

from eval.benchmarks.retrieval import QUERIES, K, available_bytes
from pi0rag_jax.memory.index import LANES

EPISODE = 70  # records
PER_TASK = 1_000  # episodes of one task
SMOOTH = 0.95  # of a key in the next one
SPREAD = {"task": 1.0, "episode": 0.3, "step": 0.3}  # standard deviation of what each adds to a key's entry
BLOCK_EPISODES = 512
IVF_TRAINED = 40  # records per list that its lists are trained on, at most
MOST_LISTS = 4096  # training more of them takes longer than they save
PROBES = (1, 4, 16, 64)  # lists that a search of IVF reads
LINKS, BUILD_DEPTH = 16, 80  # of HNSW
DEPTHS = (64, 128, 256)  # candidates that a search of HNSW keeps
HNSW_PER_S = 2_000  # records that HNSW takes in a second at least; only to leave out what would take hours
KINDS = ("exact", "ivf", "hnsw")


def indices(flags: argparse.Namespace) -> Iterator[dict]:
  """Yields a row for each index, number of records, key width, and effort of a search."""
  for key_dim in flags.key_dims:
    for records in flags.record_counts:
      yield from _of_size(records, key_dim, flags.minutes * 60)


def _of_size(records: int, key_dim: int, patience_s: float) -> Iterator[dict]:
  row = {"what": "index", "records": records, "key_dim": key_dim}
  key_dim = -(-key_dim // LANES) * LANES  # as `memory.index` keeps them
  # Two at a time, in float16, with HNSW's links; and what is drawn at once.
  needed = records * (4 * key_dim + 8 * LINKS + 16) + BLOCK_EPISODES * EPISODE * key_dim * 12
  if needed > available_bytes():
    yield row | {"left_out": f"needs {needed / 1e9:.3g} GB, {available_bytes() / 1e9:.3g} GB of memory are available"}
    return
  keys_BE = _queries(records, key_dim)
  exact = faiss.IndexScalarQuantizer(key_dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)
  built_s = _fill(exact, records, key_dim)
  _, wanted_BK = exact.search(keys_BE, K)
  yield row | {"index": "exact", **_measured(exact, keys_BE, wanted_BK), "built_s": built_s,
               "MB": round(records * exact.code_size / 1e6, 1)}
  yield from _ivf(row, records, key_dim, keys_BE, wanted_BK)
  if records / HNSW_PER_S > patience_s:
    yield row | {"index": "hnsw", "left_out": f"building it could take {records / HNSW_PER_S / 60:.0f} minutes: "
                                              "--minutes gives it more"}
    return
  yield from _hnsw(row, records, key_dim, keys_BE, wanted_BK)


def _ivf(row: dict, records: int, key_dim: int, keys_BE, wanted_BK) -> Iterator[dict]:
  lists = min(2 ** round(math.log2(4 * math.sqrt(records))), MOST_LISTS)
  coarse = faiss.IndexFlatL2(key_dim)
  ivf = faiss.IndexIVFScalarQuantizer(coarse, key_dim, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)
  ivf.by_residual = False
  began = time.perf_counter()
  ivf.train(_sample(records, key_dim, min(records, IVF_TRAINED * lists)))
  trained_s = time.perf_counter() - began
  built_s = trained_s + _fill(ivf, records, key_dim)
  for probes in PROBES:
    ivf.nprobe = probes
    yield row | {"index": "ivf", "lists": lists, "probes": probes, **_measured(ivf, keys_BE, wanted_BK),
                 "built_s": round(built_s, 1), "MB": round(records * (ivf.code_size + 8) / 1e6, 1)}


def _hnsw(row: dict, records: int, key_dim: int, keys_BE, wanted_BK) -> Iterator[dict]:
  hnsw = faiss.IndexHNSWSQ(key_dim, faiss.ScalarQuantizer.QT_fp16, LINKS)  # pyright: ignore[reportArgumentType]
  hnsw.hnsw.efConstruction = BUILD_DEPTH
  hnsw.train(_sample(records, key_dim, min(records, 10_000)))
  built_s = _fill(hnsw, records, key_dim)
  for depth in DEPTHS:
    hnsw.hnsw.efSearch = depth
    yield row | {"index": "hnsw", "depth": depth, **_measured(hnsw, keys_BE, wanted_BK), "built_s": built_s,
                 "MB": round(records * (2 * key_dim + 8 * LINKS + 12) / 1e6, 1)}


def _fill(index: faiss.Index, records: int, key_dim: int) -> float:
  """Returns the seconds that an index took to take its records in."""
  taken_s = 0.0
  for keys_ME in _blocks(records, key_dim):
    began = time.perf_counter()
    index.add(keys_ME)
    taken_s += time.perf_counter() - began
  return round(taken_s, 1)


def _measured(index: faiss.Index, keys_BE, wanted_BK) -> dict:
  """Returns the time of single searches, with one thread as in a robot's decision, and what they find."""
  threads = faiss.omp_get_max_threads()
  faiss.omp_set_num_threads(1)
  try:
    taken_ms, hits = [], []
    for key_E, wanted_K in zip(keys_BE, wanted_BK):
      began = time.perf_counter()
      _, found_1K = index.search(key_E[None], K)
      taken_ms.append(1000 * (time.perf_counter() - began))
      hits.append(len(np.intersect1d(found_1K[0], wanted_K)) / K)
  finally:
    faiss.omp_set_num_threads(threads)
  return {"k": K, "search_p50_ms": round(float(np.median(taken_ms)), 3), "recall": round(float(np.mean(hits)), 4)}


def _blocks(records: int, key_dim: int) -> Iterator[np.ndarray]:
  """Yields float32[M, E], the keys of whole episodes, `records` in all."""
  left, number = records, 0
  while left:
    keys_ME = _episodes(number, key_dim)[:left]
    left, number = left - len(keys_ME), number + 1
    yield keys_ME


def _episodes(number: int, key_dim: int) -> np.ndarray:
  """Returns float32[M, E], the keys of a block of episodes, always the same ones."""
  rng = np.random.default_rng([0, number])
  first = number * BLOCK_EPISODES // PER_TASK
  keys_NTE = _walk(rng, BLOCK_EPISODES, key_dim) * SPREAD["step"]
  keys_NTE += SPREAD["episode"] * rng.standard_normal((BLOCK_EPISODES, 1, key_dim), np.float32)
  for task in range(first, (number + 1) * BLOCK_EPISODES // PER_TASK + 1):
    mine = (number * BLOCK_EPISODES + np.arange(BLOCK_EPISODES)) // PER_TASK == task
    keys_NTE[mine] += SPREAD["task"] * _walk(np.random.default_rng([1, task]), 1, key_dim)
  return keys_NTE.reshape(-1, key_dim)


def _walk(rng: np.random.Generator, paths: int, key_dim: int) -> np.ndarray:
  """Returns smooth paths float32[N, EPISODE, E] whose entries have a standard deviation of 1."""
  keys_NTE = rng.standard_normal((paths, EPISODE, key_dim), np.float32)
  for step in range(1, EPISODE):
    keys_NTE[:, step] = SMOOTH * keys_NTE[:, step - 1] + math.sqrt(1 - SMOOTH**2) * keys_NTE[:, step]
  return keys_NTE


def _sample(records: int, key_dim: int, count: int) -> np.ndarray:
  """Returns about `count` of the keys, evenly spread."""
  step = max(records // count, 1)
  offset, kept = 0, []
  for keys_ME in _blocks(records, key_dim):
    kept.append(keys_ME[-offset % step :: step])
    offset += len(keys_ME)
  return np.concatenate(kept)


def _queries(records: int, key_dim: int) -> np.ndarray:
  """Returns float32[B, E], keys of decisions of new episodes of tasks that the memory knows."""
  rng = np.random.default_rng(2)
  tasks = max(records // (EPISODE * PER_TASK), 1)
  keys = []
  for _ in range(QUERIES * 5):
    task_TE = _walk(np.random.default_rng([1, int(rng.integers(tasks))]), 1, key_dim)[0]
    own_TE = SPREAD["step"] * _walk(rng, 1, key_dim)[0] + SPREAD["episode"] * rng.standard_normal(key_dim)
    keys.append((SPREAD["task"] * task_TE + own_TE)[int(rng.integers(EPISODE))])
  return np.stack(keys).astype(np.float32)
