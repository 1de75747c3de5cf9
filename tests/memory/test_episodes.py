"""What an episode teaches is there whole or not at all, once, and can be taken back without a trace."""

import itertools
import pathlib
import sqlite3

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import ANCHOR, CORRECTION, FAILURE, Memory, anew, codec, schema, undo, verify

from .conftest import BOTH

TABLES = ("header", "records", "arrays", "batches", "undo", "evicted", "sqlite_sequence")


def rows(place):
  """Returns all that a memory says; of a file every row of every table, but that the number of commits counts on."""
  contents = anew.read(place)
  records = [(identity, codec.encode(record, contents.header)) for identity, record in contents.records.items()]
  found = {"commits": contents.commits, "records": records, "rest": (contents.clock, contents.last_id)}
  if isinstance(place, pathlib.Path):
    with sqlite3.connect(place / schema.NAME) as connection:
      found |= {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES}
    connection.close()
  return found


def episode(number, make_record, count=3):
  """Returns what `Memory.add` is given for an episode, records that tell numbers apart."""
  rng = np.random.default_rng(number)
  records = [make_record(float(rng.integers(50)), kind, created=float(number))
             for kind in rng.choice([ANCHOR, CORRECTION, FAILURE], count)]
  ids, says = rng.integers(-1, 12, (4, 3)), rng.uniform(0, 1, (4, 3))
  return {"records": records, "token": f"episode {number}", "outcomes": [(ids, says, bool(rng.integers(2)))]}


def test_an_episode_is_one_commit(open_memory, make_record, place):
  memory = open_memory()
  memory.add([make_record(0.0)])
  before, undone = rows(place()), memory.query(np.zeros((1, 4)), 4)
  memory._store._writer.execute("CREATE TEMP TRIGGER no AFTER INSERT ON batches BEGIN SELECT RAISE(ABORT, 'no'); END")
  with pytest.raises(Pi0RagError):
    memory.add(**episode(1, make_record))
  assert rows(place()) == before and (memory.episodes, len(memory)) == (0, 1)
  np.testing.assert_array_equal(memory.query(np.zeros((1, 4)), 4).ids_BK, undone.ids_BK)
  memory._store._writer.execute("DROP TRIGGER no")
  ids = memory.add([make_record(1.0)], token="a", outcomes=[([1], [0.5], True), ([1], [0.25], False)])
  assert (memory.episodes, memory.successes, memory.get(ids)[0].episode) == (2, 1, 2)
  assert [(r.helped, r.hurt, r.episode) for r in memory.get([1])] == [(0.5, 0.25, 1)]
  assert memory.index_problems() == []


@BOTH
def test_twice_with_one_token_is_once(open_memory, make_record, place):
  memory = open_memory()
  ids = memory.add(**episode(1, make_record))
  assert memory.add([], token="nothing learned", outcomes=[([1], [1.0], True)]) == []
  after = rows(place())
  assert memory.add(**episode(1, make_record)) == ids
  assert memory.add([], token="nothing learned", outcomes=[([1], [1.0], True)]) == []
  assert rows(place()) == after and memory.episodes == 2
  memory.close()
  assert open_memory().add(**episode(1, make_record)) == ids
  assert rows(place()) == after


@pytest.mark.parametrize("capacity", [100, 9])
@BOTH
def test_taken_back_it_was_never_there(open_memory, make_record, place, capacity):
  memory = open_memory(capacity=capacity)
  states = []
  for number in range(12):
    states.append(rows(place()))
    memory.add(**episode(number, make_record))
  final = rows(place())
  assert memory.tokens() == [f"episode {number}" for number in range(12)]
  memory.record_use([9999])
  for number in reversed(range(12)):
    with pytest.raises(Pi0RagError, match=f"the last token is 'episode {number}'"):
      memory.undo("another")
    memory.undo(f"episode {number}")
    assert rows(place()) == states[number], number
    assert memory.index_problems() == []
    if number == 5:
      memory.close()
      memory = open_memory(capacity=capacity)
  assert memory.tokens() == [] and memory.episodes == 0
  for number in range(12):
    memory.add(**episode(number, make_record))
  assert rows(place()) == final
  assert memory.index_problems() == verify.verify(place()) == []


def test_a_killed_stream_takes_back_what_was_not_logged(open_memory, make_record, place):
  """At whatever episode the process ends, between commit and log, the memory is the uninterrupted one's."""
  whole = open_memory(place("whole"), capacity=9)
  for number in range(8):
    whole.add(**episode(number, make_record))
  whole.close()
  for killed_at in range(8):
    where = place(str(killed_at))
    memory, log = open_memory(where, capacity=9), []
    for number in range(killed_at + 1):
      memory.add(**episode(number, make_record))
      log.append(f"episode {number}")
    log.pop()
    memory.close()
    memory = open_memory(where, capacity=9)
    for token in reversed([token for token in memory.tokens() if token not in log]):
      memory.undo(token)
    for number in range(killed_at, 8):
      memory.add(**episode(number, make_record))
    memory.close()
    assert rows(where) == rows(place("whole"))


@BOTH
def test_what_others_rest_on_is_not_taken_back(open_memory, make_record, place):
  memory = open_memory()
  for change, number in zip((
      lambda: memory.add([make_record(1.0)]), lambda: memory.remove([1]),
      lambda: memory.record_outcome([1], [1.0], success=True)), itertools.count()):
    memory.add([make_record(0.0)], token=str(number))
    change()
    before = rows(place())
    with pytest.raises(Pi0RagError, match="the memory was changed without a token since"):
      memory.undo(str(number))
    assert rows(place()) == before
  memory.close()
  with pytest.raises(Pi0RagError, match="is closed"):
    memory.undo("2")


def test_a_file_takes_back_the_last_64(open_memory):
  memory = open_memory()
  for number in range(undo.KEPT + 5):
    memory.add([], token=f"later {number}")
  for number in reversed(range(5, undo.KEPT + 5)):
    memory.undo(f"later {number}")
  with pytest.raises(Pi0RagError, match="changed without a token since, or it is not one of the last 64"):
    memory.undo("later 4")


@BOTH
def test_uses_are_not_taken_back_nor_given_to_the_next(open_memory, make_record):
  memory = open_memory()
  memory.add([make_record(0.0)])
  memory.add([make_record(1.0)], token="a")
  memory.record_use([1, 2])
  memory.flush()
  memory.record_use([1, 2])
  memory.undo("a")
  memory.add([make_record(2.0)], token="b")
  memory.flush()
  assert [record.use_count for record in memory.get([1, 2])] == [2, 0]
  assert memory.index_problems() == []


def test_tokens_of_older_versions_come_first(open_memory, make_record, tmp_path, older):
  memory = open_memory()
  for token in ("z", "a"):
    memory.add([make_record(0.0)], token=token)
  memory.close()
  older(tmp_path / "memory", 2)
  assert open_memory(read_only=True).tokens() == ["z", "a"]
  memory = open_memory()
  memory.add([make_record(0.0)], token="b")
  assert memory.tokens() == ["z", "a", "b"]
  memory.undo("b")
  with pytest.raises(Pi0RagError, match="cannot be taken back"):
    memory.undo("a")
  assert Memory.load(tmp_path / "memory").tokens() == ["z", "a"]
  assert codec.digest(memory.get([1])[0], memory.header) == codec.digest(make_record(0.0), memory.header)
