import os

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import ANCHOR, CORRECTION, FAILURE, Memory

from .conftest import BOTH


@BOTH
def test_add_query_and_reopen(open_memory, make_record, key):
  memory = open_memory()
  assert memory.add([make_record(0.0), make_record(1.0, ANCHOR), make_record(2.0)]) == [1, 2, 3]
  assert len(memory) == 3
  assert memory.counts() == {CORRECTION: 2, ANCHOR: 1, FAILURE: 0}
  before = memory.query(key(1.5), 4)
  assert before.ids_BK.tolist() == [[3, 1, 2, -1]]
  memory.close()
  after = open_memory().query(key(1.5), 4)
  for name in ("ids_BK", "distances_BK", "base_BKTA", "corrected_BKTA", "mask_BK"):
    np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


@BOTH
def test_odd_k_gives_anchors_the_larger_half_and_anchors_can_be_left_out(open_memory, make_record, key):
  memory = open_memory()
  memory.add([make_record(float(x), kind) for kind in (CORRECTION, ANCHOR) for x in range(5)])
  assert memory.query(key(0.0), 3).of_kind(CORRECTION).tolist() == [[True, False, False]]
  assert memory.query(key(0.0), 1).of_kind(CORRECTION).tolist() == [[False]]
  assert memory.query(key(0.0), 3, kinds=(CORRECTION,)).ids_BK.tolist() == [[1, 2, 3]]
  assert memory.query(key(0.0), 2, task="other").mask_BK.tolist() == [[False, False]]


def test_kinds_share_the_places(open_memory, make_record, key):
  memory = open_memory()
  memory.add([make_record(float(x), kind) for kind in (CORRECTION, ANCHOR, FAILURE) for x in range(5)])
  found = memory.query(key(0.0), 8, kinds=(CORRECTION, ANCHOR, FAILURE))
  assert [found.of_kind(kind).sum() for kind in (CORRECTION, ANCHOR, FAILURE)] == [2, 3, 3]
  assert not memory.query(key(0.0), 15).of_kind(FAILURE).any()
  with pytest.raises(Pi0RagError, match="allowed: one or more of correction, anchor, failure, each once"):
    memory.query(key(0.0), 4, kinds=("anchors",))


@BOTH
def test_failures_make_room_first(open_memory, make_record):
  memory = open_memory(capacity=4)
  memory.add([make_record(float(x), kind) for x, kind in enumerate((FAILURE, ANCHOR, CORRECTION, FAILURE))])
  memory.add([make_record(9.0, ANCHOR)])
  assert memory.counts() == {CORRECTION: 1, ANCHOR: 2, FAILURE: 1}
  memory.add([make_record(8.0, CORRECTION), make_record(7.0, FAILURE)])
  assert memory.counts() == {CORRECTION: 2, ANCHOR: 2, FAILURE: 0}
  assert memory.index_problems() == []


@BOTH
def test_empty_memory(open_memory, key):
  memory = open_memory()
  assert len(memory) == 0
  assert not memory.query(key(0.0, 1.0), 16).mask_BK.any()
  assert memory.add([]) == []
  assert memory.index_problems() == []


@BOTH
def test_errors_of_a_query(open_memory, key):
  memory = open_memory()
  with pytest.raises(
    Pi0RagError, match=r"keys have shape \(1, 5\), the memory holds keys of 4 dims \(encoder 'test'\)"
  ):
    memory.query(np.zeros((1, 5)), 2)
  with pytest.raises(Pi0RagError, match=r"keys have shape \(4,\)"):
    memory.query(np.zeros(4), 2)
  with pytest.raises(Pi0RagError, match="not finite"):
    memory.query(key(np.nan), 2)
  with pytest.raises(Pi0RagError, match="k is 0"):
    memory.query(key(0.0), 0)
  memory.close()
  memory.close()
  for action in (lambda: memory.query(key(0.0), 2), lambda: memory.add([])):
    with pytest.raises(Pi0RagError, match="is closed"):
      action()


def test_a_folder_has_one_writer(open_memory):
  open_memory()
  with pytest.raises(Pi0RagError, match="in use for writing"):
    open_memory()


@BOTH
def test_open_checks_the_header(open_memory):
  open_memory()
  with pytest.raises(Pi0RagError, match="policy is 'policy 2', the memory has 'policy 1'"):
    open_memory(policy="policy 2", read_only=True)


@BOTH
def test_chunk_dtype_is_the_memorys_unless_given(open_memory):
  open_memory(chunk_dtype="float32").close()
  assert open_memory(read_only=True).header.chunk_dtype == "float32"
  with pytest.raises(Pi0RagError, match="chunk_dtype is 'float16', the memory has 'float32'"):
    open_memory(chunk_dtype="float16", read_only=True)


@BOTH
def test_eviction_at_capacity_order_and_durability(open_memory, make_record):
  memory = open_memory(capacity=4)
  # Anchors 1, 2 are 0.5 apart, 3 is far; correction 4 duplicates nothing of its own kind.
  memory.add([make_record(x, ANCHOR) for x in (0.0, 0.5, 30.0)] + [make_record(0.0)])
  memory.record_use([1, 1, 2])
  assert memory.add([make_record(60.0)]) == [5]
  assert sorted(i for i, _ in memory.records()) == [1, 3, 4, 5]  # 2: near 1, less used
  memory.add([make_record(90.0), make_record(120.0)])
  assert sorted(i for i, _ in memory.records()) == [4, 5, 6, 7]
  # No anchors are left: corrections only now, and an incoming anchor does not displace one.
  assert memory.add([make_record(5.0, ANCHOR)]) == [8]
  assert sorted(i for i, _ in memory.records()) == [4, 5, 6, 7]
  memory.add([make_record(121.0)])
  # Spacings 60, 30, 30, 30: the oldest of the three.
  assert sorted(i for i, _ in memory.records()) == [4, 6, 7, 9]
  assert memory.index_problems() == []
  assert memory.statistics()["evicted"] == 5
  memory.close()
  again = open_memory(capacity=4)
  assert len(again) == 4
  assert again.add([make_record(500.0)]) == [10]
  with pytest.raises(Pi0RagError, match="5 records at once, the capacity is 4"):
    again.add([make_record()] * 5)


@BOTH
def test_a_smaller_capacity_keeps_what_is_there_until_the_next_addition(open_memory, make_record, key):
  memory = open_memory(capacity=10)
  memory.add([make_record(float(x), ANCHOR) for x in range(10)])
  memory.close()
  memory = open_memory(capacity=5)
  assert len(memory) == 10
  memory.add([make_record(100.0, ANCHOR)])
  assert len(memory) == 5
  assert memory.query(key(100.0), 2).ids_BK.tolist() == [[-1, 11]]
  for absurd in (0, -1, 2.5, True, 10**12):
    with pytest.raises(Pi0RagError, match=f"capacity is {absurd}, must be a whole number of 1 or more"):
      open_memory(capacity=absurd, read_only=True)


@BOTH
def test_tokens_survive_reopening(open_memory, make_record):
  memory = open_memory()
  assert memory.add([make_record(1.0)], token="episode 1") == [1]
  memory.close()
  memory = open_memory()
  assert memory.add([make_record(1.0)], token="episode 1") == [1]
  assert len(memory) == 1


@BOTH
def test_use_counts_are_durable_at_flush_and_close(open_memory, make_record, key):
  memory = open_memory()
  memory.add([make_record(0.0), make_record(1.0, ANCHOR)])
  memory.record_use(memory.query(key(0.0), 4).ids_BK)
  memory.record_use([1, 77])
  assert [r.use_count for _, r in memory.records()] == [0, 0]
  memory.flush()
  assert [r.use_count for _, r in memory.records()] == [2, 1]
  memory.record_use([2])
  memory.close()
  assert [r.use_count for _, r in open_memory().records()] == [2, 2]


@BOTH
def test_read_only_memory(open_memory, make_record, key):
  with pytest.raises(Pi0RagError, match="no memory in"):
    open_memory(read_only=True)
  with pytest.raises(Pi0RagError, match="no memory in"):
    open_memory(create=False)
  writer = open_memory()
  writer.add([make_record(0.0)])
  readers = [open_memory(read_only=True) for _ in range(2)]
  for reader in readers:
    assert reader.query(key(0.0), 2).ids_BK.tolist() == [[1, -1]]
    reader.record_use([1])
    reader.flush()
    for action in (lambda r=reader: r.add([make_record()]), lambda r=reader: r.remove([1]), reader.compact):
      with pytest.raises(Pi0RagError, match="read-only: nothing can be written"):
        action()
    assert reader.statistics()["records"] == 1
    reader.close()
  assert writer.add([make_record(1.0)]) == [2]


def test_a_read_only_directory_can_be_read(open_memory, make_record, key, tmp_path):
  memory = open_memory()
  memory.add([make_record(0.0)])
  memory.close()
  directory = tmp_path / "memory"
  (directory / "memory.lock").unlink()
  directory.chmod(0o555)
  try:
    assert open_memory(read_only=True).query(key(0.0), 2).mask_BK.any()
    assert os.geteuid() == 0 or sorted(os.listdir(directory)) == ["memory.sqlite3"]
  finally:
    directory.chmod(0o755)


@BOTH
def test_frozen_memory_does_not_change(open_memory, make_record, key):
  memory = open_memory()
  memory.add([make_record(0.0)])
  memory.record_use([1])
  with memory.frozen() as same:
    assert same is memory
    with pytest.raises(Pi0RagError, match="frozen: nothing can be written"):
      memory.add([make_record()])
    memory.record_use([1])
    memory.flush()
    assert memory.query(key(0.0), 2).mask_BK.any()
    assert [r.use_count for _, r in memory.records()] == [0]
  memory.add([make_record()])
  memory.flush()
  assert [r.use_count for _, r in memory.records()] == [1, 0]


@BOTH
def test_remove_get_and_near_duplicates(open_memory, make_record):
  memory = open_memory()
  memory.add([make_record(x) for x in (0.0, 0.1, 5.0)])
  assert memory.near_duplicates(CORRECTION, 1.0) == [1]
  memory.remove([1, 44])
  assert len(memory) == 2
  assert memory.get([3, 2])[0].key[0] == 5
  with pytest.raises(Pi0RagError, match="there is no record 1"):
    memory.get([1])
  assert memory.index_problems() == []


def test_failed_write_changes_nothing(open_memory, make_record):
  memory = open_memory()
  memory.add([make_record()])
  memory.record_use([1])
  memory._store._writer.execute("PRAGMA query_only = 1")
  for action in (lambda: memory.add([make_record()]), memory.flush, lambda: memory.remove([1])):
    with pytest.raises(Pi0RagError, match="cannot be read or written"):
      action()
  memory._store._writer.execute("PRAGMA query_only = 0")
  assert len(memory) == 1
  memory.flush()
  assert [r.use_count for _, r in memory.records()] == [1]
  assert memory.index_problems() == []


def test_damaged_content_is_refused_at_opening(open_memory, make_record):
  memory = open_memory()
  memory.add([make_record(float(x)) for x in range(3)])
  memory._store._writer.execute("UPDATE arrays SET base = zeroblob(12) WHERE id = 3")
  memory.close()
  with pytest.raises(Pi0RagError, match=r"record 3 is damaged.*export --skip_damaged"):
    open_memory()


@BOTH
def test_load_takes_the_header_that_is_there(open_memory, make_record, place):
  open_memory().add([make_record()])
  with Memory.load(place()) as memory:
    assert memory.header.policy == "policy 1"
    assert memory.read_only


@BOTH
def test_statistics_and_bytes(open_memory, make_record, key):
  memory = open_memory()
  memory.add([make_record(task="pick", outcome="failure", failure_kind="slip"), make_record(kind=ANCHOR)])
  memory.query(key(0.0, 1.0), 2)
  statistics = memory.statistics()
  assert statistics["by_kind"] == {"anchor": 1, "correction": 1}
  assert statistics["by_task"] == {"": 1, "pick": 1}
  assert statistics["by_failure_kind"] == {"": 1, "slip": 1}
  assert statistics["by_source"] == {"policy": 2}
  assert (statistics["records"], statistics["queries"], statistics["added"]) == (2, 2, 2)
  cached = memory._store.cache_bytes()
  assert memory.memory_bytes() == cached + 100 * (16 * 2 + 2 * 3 * 2 * 2 + 6 * 8 + 2 * 4 + 1)
