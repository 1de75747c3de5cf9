import dataclasses

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import ANCHOR, CORRECTION, FAILURE, KINDS, Record
from pi0rag_jax.memory import index as index_module
from pi0rag_jax.memory.index import LANES, MemoryIndex, build
from pi0rag_jax.memory.store import Counters


@pytest.fixture
def index(header, make_record):
  """Corrections 1, 3, 5 at x = 0, 10, 20 and anchors 2, 4 at x = 1, 11."""
  records = [(0.0, CORRECTION), (1.0, ANCHOR), (10.0, CORRECTION), (11.0, ANCHOR), (20.0, CORRECTION)]
  return build(header, 8, [(i + 1, make_record(x, kind)) for i, (x, kind) in enumerate(records)])


def test_hand_worked_search(index, key):
  found = index.search(key(9.0), {CORRECTION: 2, ANCHOR: 2})
  assert found.ids_BK.tolist() == [[3, 1, 4, 2]]
  assert found.distances_BK.tolist() == [[1, 9, 2, 8]]
  assert found.of_kind(CORRECTION).tolist() == [[True, True, False, False]]
  assert found.mask_BK.all()
  assert found.base_BKTA.shape == (1, 4, 3, 2)
  assert found.base_BKTA[0, :, 0, 0].tolist() == [10, 0, 11, 1]
  assert found.corrected_BKTA[0, :, 2, 1].tolist() == [11, 1, 12, 2]


def test_dtypes(index, key):
  found = index.search(key(9.0), {CORRECTION: 1, ANCHOR: 1})
  assert found.ids_BK.dtype == np.int64
  assert found.distances_BK.dtype == np.float32
  assert found.base_BKTA.dtype == found.corrected_BKTA.dtype == index.header.chunk_dtype
  assert found.mask_BK.dtype == found.of_kind(CORRECTION).dtype == bool


def test_more_wanted_than_there_are(index, key):
  found = index.search(key(0.0, 20.0), {CORRECTION: 4, ANCHOR: 4})
  assert found.ids_BK.tolist() == [[1, 3, 5, -1, 2, 4, -1, -1], [5, 3, 1, -1, 4, 2, -1, -1]]
  assert found.mask_BK.tolist() == [[True, True, True, False, True, True, False, False]] * 2
  assert np.isinf(found.distances_BK[~found.mask_BK]).all()
  assert not found.base_BKTA[~found.mask_BK].any()
  assert not found.of_kind(CORRECTION)[:, 4:].any()


def test_empty_index_and_one_kind_only(header, make_record, key):
  empty = MemoryIndex(header, 4)
  assert not empty.search(key(0.0), {CORRECTION: 2, ANCHOR: 2}).mask_BK.any()
  assert empty.search(key(), {CORRECTION: 2, ANCHOR: 2}).ids_BK.shape == (0, 4)
  anchors = build(header, 4, [(1, make_record(0.0, ANCHOR))])
  assert anchors.search(key(0.0), {CORRECTION: 2, ANCHOR: 2}).mask_BK.tolist() == [[False, False, True, False]]


def test_chunks_are_where_jax_takes_them_without_a_copy(header, make_record, key):
  index = build(header, 8, [(i, make_record(i)) for i in range(5)])
  for k in (1, 3, 5):
    found = index.search(key(0.0), {CORRECTION: k})
    assert not found.base_BKTA.ctypes.data % 64 and not found.corrected_BKTA.ctypes.data % 64


def test_ties_go_to_the_lower_id_whatever_the_order_of_rows(header, make_record, key):
  index = MemoryIndex(header, 40)
  for identity in [7, 30, 2, 19, 5, 11, 28, 3]:
    index.add(identity, make_record(1.0))
  index.add(1, make_record(3.0))
  assert index.search(key(1.0), {CORRECTION: 3, ANCHOR: 0}).ids_BK.tolist() == [[2, 3, 5]]
  index.remove([2, 7])
  assert index.search(key(1.0), {CORRECTION: 3, ANCHOR: 0}).ids_BK.tolist() == [[3, 5, 11]]
  assert index.search(key(3.0), {CORRECTION: 2, ANCHOR: 0}).ids_BK.tolist() == [[1, 3]]


def test_search_of_one_task(header, make_record, key):
  tasks = ["a", "b", "a", "b", "b"]
  index = build(header, 9, [(i, make_record(float(i), task=task)) for i, task in enumerate(tasks)])
  assert index.search(key(0.0), {CORRECTION: 2, ANCHOR: 0}, "b").ids_BK.tolist() == [[1, 3]]
  assert index.search(key(0.0), {CORRECTION: 4, ANCHOR: 0}, "a").ids_BK.tolist() == [[0, 2, -1, -1]]
  assert not index.search(key(0.0), {CORRECTION: 2, ANCHOR: 2}, "unknown").mask_BK.any()


def test_agrees_with_brute_force_while_records_come_and_go(header):
  rng = np.random.default_rng(0)
  index, alive = MemoryIndex(header, 60), {}
  for identity in range(300):
    if len(index) == 60 or (alive and rng.random() < 0.4):
      gone = int(rng.choice(list(alive)))
      index.remove([gone])
      del alive[gone]
    chunk_TA = rng.standard_normal((3, 2)).astype(np.float16)
    record = Record(
      rng.standard_normal(4).astype(np.float16), chunk_TA, chunk_TA, str(rng.choice(KINDS)), "success"
    )
    index.add(identity, record)
    alive[identity] = record
    query_E = rng.standard_normal(4).astype(np.float32)
    found = index.search(query_E[None], {CORRECTION: 3, ANCHOR: 3, FAILURE: 3})
    for kind, slots in ((CORRECTION, slice(0, 3)), (ANCHOR, slice(3, 6)), (FAILURE, slice(6, 9))):
      ids = [i for i, r in alive.items() if r.kind == kind]
      expected = sorted(ids, key=lambda i: (np.linalg.norm(alive[i].key - query_E), i))[:3]
      assert found.ids_BK[0, slots].tolist() == expected + [-1] * (3 - len(expected))
      for slot, i in enumerate(expected, slots.start):
        np.testing.assert_array_equal(found.base_BKTA[0, slot], alive[i].base_chunk)
        assert found.kind_BK[0, slot] == KINDS.index(kind)
        assert found.distances_BK[0, slot] == pytest.approx(np.linalg.norm(alive[i].key - query_E), rel=1e-5)
  assert len(index) == len(alive)


def test_batch_and_single_searches_are_equal(header):
  rng = np.random.default_rng(1)
  chunk_TA = np.zeros((3, 2))
  records = [(i, Record(rng.standard_normal(4), chunk_TA, chunk_TA, CORRECTION, "success")) for i in range(200)]
  index = build(header, 200, records)
  keys_BE = rng.standard_normal((50, 4)).astype(np.float32)
  batch = index.search(keys_BE, {CORRECTION: 5, ANCHOR: 0})
  for row, key_E in enumerate(keys_BE):
    single = index.search(key_E[None], {CORRECTION: 5, ANCHOR: 0})
    np.testing.assert_array_equal(single.ids_BK[0], batch.ids_BK[row])
    np.testing.assert_array_equal(single.distances_BK[0], batch.distances_BK[row])


def test_float32_chunks_are_exact(header):
  header = dataclasses.replace(header, chunk_dtype="float32")
  chunk_TA = np.full((3, 2), 0.1)
  index = build(header, 1, [(1, Record(np.zeros(4), chunk_TA, chunk_TA, ANCHOR, "success"))])
  assert (index.search(np.zeros((1, 4), np.float32), {CORRECTION: 0, ANCHOR: 1}).base_BKTA == np.float32(0.1)).all()


def test_full_index_and_known_ids_are_refused(index, make_record):
  with pytest.raises(Pi0RagError, match="no row for record 1"):
    index.add(1, make_record())
  for identity in (6, 7, 8):
    index.add(identity, make_record())
  with pytest.raises(Pi0RagError, match="8 of 8 taken"):
    index.add(9, make_record())
  index.remove([99, 6])
  index.add(9, make_record(kind=ANCHOR))
  assert index.count(ANCHOR) == 3
  with pytest.raises(Pi0RagError, match="capacity is 0"):
    MemoryIndex(index.header, 0)


def test_bytes_grow_with_capacity_only(index, header):
  assert index.nbytes() == MemoryIndex(header, 8).nbytes()
  # float16 keys padded to the lanes and two float16 chunks; id, uses, nearest id, two utilities, episode; spacing
  # and task; one flag.
  assert index.nbytes() == 8 * (LANES * 2 + 2 * 3 * 2 * 2 + 6 * 8 + 2 * 4 + 1)


def test_a_capacity_beyond_the_machines_memory_is_refused(header, monkeypatch):
  monkeypatch.setattr(index_module.os, "sysconf", lambda name: 1000)
  with pytest.raises(Pi0RagError, match=r"a capacity of 100000 takes 0.0056 GB of memory, this machine has"):
    MemoryIndex(header, 100_000)
  assert MemoryIndex(header, 1000).capacity == 1000


def test_more_rows_find_the_same(index, key, make_record):
  index.remove([1])
  index.add(6, make_record(4.0, FAILURE, task="pick"))
  index.count_again(3, Counters(2, 0.5, 0.25, 7))
  index.count_again(99, Counters(1, 1.0, 1.0, 1))
  larger = index.resized(20)
  wanted = dict.fromkeys(KINDS, 3)
  for task in (None, "pick"):
    one, other = (each.search(key(9.0, 2.0), wanted, task) for each in (index, larger))
    for field in dataclasses.fields(one):
      np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
  assert one.ids_BK[0].max() == 6 and larger.search(key(10.0), {CORRECTION: 1}).helped_BK[0, 0] == 0.5
  assert sorted(larger.ids()) == [2, 3, 4, 5, 6] and larger.capacity == 20
  for identity in range(10, 25):
    larger.add(identity, make_record(float(identity), ANCHOR))
  assert len(larger) == 20
