"""Threads that query, add, evict, count uses, compact and verify one memory at once."""

import concurrent.futures
import threading

import numpy as np

from pi0rag_jax.memory import ANCHOR, CORRECTION, Memory, Record

DIM, CAPACITY, SECONDS = 32, 300, 3.0


def make(rng, number):
  """Returns a record whose key, chunks and task all tell the same number, so that a torn read shows."""
  value = float(number % 1000)
  key_E = np.full(DIM, value) + 0.1 * rng.standard_normal(DIM)
  base_TA = np.full((4, 3), value)
  kind = CORRECTION if number % 10 == 0 else ANCHOR
  return Record(key_E, base_TA, base_TA + 1, kind, "success", task=str(number % 3))


def query(memory, stop, seed):
  """Queries until stopped and checks each answer against itself; returns the number of queries."""
  rng = np.random.default_rng(seed)
  n = 0
  while not stop.is_set():
    batch = int(rng.integers(1, 5))
    keys_BE = rng.uniform(0, 1000, (batch, 1)) * np.ones(DIM)
    found = memory.query(keys_BE, 8, task=None if n % 3 else str(n % 9 // 3))
    mask_BK = found.mask_BK
    np.testing.assert_array_equal(found.ids_BK >= 0, mask_BK)
    values_N = found.base_BKTA[mask_BK][:, 0, 0]
    np.testing.assert_array_equal(
      found.base_BKTA[mask_BK], np.broadcast_to(values_N[:, None, None], (len(values_N), 4, 3))
    )
    np.testing.assert_array_equal(found.corrected_BKTA[mask_BK], found.base_BKTA[mask_BK] + 1)
    expected = np.abs(values_N - np.broadcast_to(keys_BE[:, :1], mask_BK.shape)[mask_BK]) * np.sqrt(DIM)
    np.testing.assert_allclose(found.distances_BK[mask_BK], expected, atol=4)
    memory.record_use(found.ids_BK)
    n += 1
  return n


def add(memory, stop, first, lock, ids):
  rng = np.random.default_rng(first)
  number = first
  while not stop.is_set():
    new = memory.add([make(rng, number + i) for i in range(int(rng.integers(1, 8)))])
    with lock:
      ids.extend(new)
    number += len(new)


def upkeep(memory, stop):
  n = 0
  while not stop.wait(0.05):
    memory.flush()
    memory.statistics()
    memory.counts()
    list(memory.records())
    if n % 5 == 0:
      memory.compact()
    n += 1


def test_threads_never_race(tmp_path):
  stop, lock, ids = threading.Event(), threading.Lock(), []
  with (
    Memory.open(
      tmp_path, key_dim=DIM, action_horizon=4, action_dim=3, encoder="e", policy="p", capacity=CAPACITY
    ) as memory,
    concurrent.futures.ThreadPoolExecutor(8) as pool,
  ):
    # Full from the start, so that every addition evicts and moves rows.
    rng = np.random.default_rng(0)
    ids.extend(memory.add([make(rng, n) for n in range(CAPACITY)]))
    jobs = [pool.submit(query, memory, stop, seed) for seed in range(4)]
    jobs += [pool.submit(add, memory, stop, first, lock, ids) for first in (0, 500_000)]
    jobs += [pool.submit(upkeep, memory, stop)]
    done, _ = concurrent.futures.wait(jobs, SECONDS, concurrent.futures.FIRST_EXCEPTION)
    stop.set()
    for job in jobs:
      job.result()
    assert not done
    assert memory.statistics()["evicted"] == len(ids) - CAPACITY > 0
    assert len(set(ids)) == len(ids)
    assert len(memory) == CAPACITY
    assert memory.index_problems() == []
  with Memory.load(tmp_path) as memory:
    assert len(memory) == CAPACITY
    assert {i for i, _ in memory.records()} <= set(ids)


def test_a_query_does_not_wait_for_the_disk(tmp_path):
  with Memory.open(tmp_path, key_dim=DIM, action_horizon=4, action_dim=3, encoder="e", policy="p") as memory:
    memory.add([make(np.random.default_rng(0), 10)])
    with memory._store._mutex, concurrent.futures.ThreadPoolExecutor(1) as pool:
      # As if a commit were under way.
      found = pool.submit(memory.query, np.zeros((1, DIM)), 2).result(timeout=5)
      pool.submit(memory.record_use, [1]).result(timeout=5)
    assert found.mask_BK.any()
