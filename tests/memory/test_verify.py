import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import ANCHOR, verify


@pytest.fixture
def memory(open_memory, make_record):
  memory = open_memory()
  memory.add([make_record(float(x), kind) for kind in ("correction", ANCHOR) for x in range(5)])
  return memory


def test_a_whole_memory_has_no_problems_open_or_closed(memory, tmp_path):
  assert verify.verify(tmp_path / "memory") == []
  memory.close()
  assert verify.verify(tmp_path / "memory") == []


def test_every_damaged_record_is_listed(memory, tmp_path):
  for statement in (
    "UPDATE arrays SET key = zeroblob(16) WHERE id = 2",
    "UPDATE records SET task = 'other' WHERE id = 4",
    "DELETE FROM arrays WHERE id = 6",
  ):
    memory._store._writer.execute(statement)
  memory.close()
  problems = verify.verify(tmp_path / "memory")
  assert [problem.split(",")[0] for problem in problems] == [f"record {i} is damaged" for i in (2, 4, 6)]


def test_arrays_without_a_record_are_damage(memory, tmp_path):
  memory._store._writer.execute("DELETE FROM records WHERE id = 2")
  memory.close()
  (problem,) = verify.verify(tmp_path / "memory")
  assert "1 arrays without a record" in problem


def test_a_truncated_file_is_a_problem_a_missing_one_an_error(memory, tmp_path):
  memory.close()
  path = tmp_path / "memory" / "memory.sqlite3"
  path.write_bytes(path.read_bytes()[:-4096])
  assert len(verify.verify(tmp_path / "memory")) == 1
  assert "is damaged" in verify.verify(tmp_path / "memory")[0]
  with pytest.raises(Pi0RagError, match="no memory in"):
    verify.verify(tmp_path)


def test_differences_between_index_and_store_are_found(memory, make_record):
  index = memory._index
  assert verify.compare(memory._store, index) == []
  index._base_MTA[index.row(1)] += 1
  index._padded_ME[index.row(2), :4] += 1
  index.uses_M[index.row(3)] = 7
  index.remove([4, 5])
  index.add(77, make_record())
  index.add(5, make_record(4.0, ANCHOR))
  assert memory.index_problems() == [
    "record 1: base chunk in the index not as in the store",
    "record 2: key in the index not as in the store",
    "record 3: use count in the index not as in the store",
    "record 5: is a correction in the store, not in the index",
    "1 records are only in the store: 4",
    "1 records are only in the index: 77",
  ]
