"""Memories made of records that exist: whole or not at all, with tokens and clock."""

import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import Memory, anew


@pytest.fixture
def contents(open_memory, make_record, tmp_path):
  memory = open_memory()
  memory.add([make_record(0.0)], token="episode a", outcomes=[([], [], True)])
  memory.add([make_record(1.0)])
  memory.add([make_record(2.0), make_record(3.0)], token="episode b", outcomes=[([1], [0.5], False)])
  memory.remove([3])
  memory.close()
  return anew.read(tmp_path / "memory")


def test_what_is_read_is_written(contents, tmp_path):
  assert [(batch.token, list(batch.ids)) for batch in contents.batches()] == [
    (None, [2]), ("episode a", [1]), ("episode b", [4])]
  assert contents.clock == (2, 1)
  out = anew.write(tmp_path / "new", contents.header, contents.batches(), episodes=2, successes=1)
  again = anew.read(out)
  assert [(b.token, [r.key[0] for r in b.records]) for b in again.batches()] == [
    (None, [1.0]), ("episode a", [0.0]), ("episode b", [3.0])]
  records = [record for batch in again.batches() for record in batch.records]
  assert [(r.helped, r.hurt, r.episode) for r in records] == [(0, 0, 1), (0, 0.5, 1), (0, 0, 2)]
  with Memory.load(out, read_only=False) as memory:
    assert (memory.episodes, memory.successes, memory.index_problems()) == (2, 1, [])
    assert memory.tokens() == ["episode a", "episode b"]


def test_a_kill_leaves_nothing_at_the_place(contents, make_record, tmp_path):
  class Killed(Exception):
    pass

  def batches():
    yield contents.batches()[0]
    raise Killed

  with pytest.raises(Killed):
    anew.write(tmp_path / "new", contents.header, batches())
  assert not (tmp_path / "new").exists()
  (tmp_path / "new.draft").mkdir()
  (tmp_path / "new.draft" / "memory.sqlite3").write_text("half")
  anew.write(tmp_path / "new", contents.header, contents.batches())
  assert [path.name for path in tmp_path.glob("new*")] == ["new"]
  with pytest.raises(Pi0RagError, match="is there already"):
    anew.write(tmp_path / "new", contents.header, contents.batches())
