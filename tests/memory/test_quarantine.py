"""Records in quarantine stay, and no search returns them."""

import sqlite3

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import ANCHOR, Memory, anew, portable, schema, seal, verify
from pi0rag_jax.memory.__main__ import main
from pi0rag_jax.serving import runner

from .conftest import BOTH


@BOTH
def test_no_search_returns_it_until_it_is_released(open_memory, make_record, key, place, tmp_path):
  memory = open_memory(capacity=3)
  memory.add([make_record(0.0), make_record(1.0), make_record(2.0, ANCHOR)], token="a", outcomes=[([], [], True)])
  memory.quarantine([1, 3], "the wrong gripper")
  assert memory.query(key(0.0), 4).ids_BK.tolist() == [[2, -1, -1, -1]]
  assert (len(memory), [identity for identity, _ in memory.records()]) == (1, [2])
  assert memory.quarantined() == {1: "the wrong gripper", 3: "the wrong gripper"}
  assert [record.quarantine for record in memory.get([1, 2])] == ["the wrong gripper", ""]
  memory.record_outcome([1], [0.5], success=True)
  # It takes no place: nothing is evicted for two more.
  assert memory.add([make_record(5.0), make_record(6.0)]) == [4, 5]
  assert memory.index_problems() == verify.verify(place()) == []
  portable.export_memory(place(), tmp_path / "out.npz")
  portable.import_memory(place("copy"), tmp_path / "out.npz")
  with Memory.load(place("copy")) as copy:
    assert sorted(copy.quarantined()) == [1, 3]
  memory.close()
  memory = open_memory(capacity=4)
  assert memory.quarantined() == {1: "the wrong gripper", 3: "the wrong gripper"}
  memory.release([1])
  found = memory.query(key(0.0), 2, kinds=("correction",))
  assert (found.ids_BK.tolist(), found.helped_BK.tolist()) == ([[1, 2]], [[0.5, 0.0]])
  assert memory.index_problems() == []


def test_programs_do_not_find_it_either(open_memory, make_record, place):
  memory = open_memory()
  memory.add([make_record(0.0), make_record(1.0)])
  memory.quarantine([1], "why")
  about = {"memory": {"key_dim": 4, "action_horizon": 3, "action_dim": 2, "chunk_dtype": "float16"},
           "unit_distance": 1.0, "shares": {"correction": 2}, "kinds": ["correction", "anchor", "failure"]}
  ids_BK, _ = runner.Memory(place(), about, None).nearest(np.zeros((1, 4)))
  assert ids_BK.tolist() == [[2, -1]]
  with pytest.raises(ValueError, match="reads the folder of a memory"):
    runner.Memory("postgresql://host/db?memory=a", about, None)


@BOTH
def test_what_cannot_be_set_apart(open_memory, make_record):
  memory = open_memory()
  memory.add([make_record(0.0)])
  for ids, reason, message in (([1, 7], "why", "there is no record 7"), ([1], "", "needs a reason")):
    with pytest.raises(Pi0RagError, match=message):
      memory.quarantine(ids, reason)
  assert memory.quarantined() == {} and len(memory) == 1
  with memory.frozen(), pytest.raises(Pi0RagError, match="is frozen"):
    memory.quarantine([1], "why")


@BOTH
def test_taking_back_what_is_in_quarantine(open_memory, make_record, place):
  memory = open_memory(capacity=2)
  memory.add([make_record(0.0, ANCHOR), make_record(9.0, ANCHOR)])
  before = anew.read(place())
  memory.add([make_record(4.0)], token="a")
  memory.quarantine([3], "why")
  memory.undo("a")
  assert anew.digest(anew.read(place())) == anew.digest(before)
  assert memory.quarantined() == {} and memory.index_problems() == []


@BOTH
def test_the_command(open_memory, make_record, place, capsys):
  open_memory().add([make_record(0.0), make_record(1.0)])
  open_memory.opened[-1].close()
  where = str(place())
  assert main(["quarantine", where, "--ids=2", "--reason=a loose camera"]) == 0
  assert "1 records of" in (told := capsys.readouterr().out) and "no search returns them" in told
  assert main(["inspect", where]) == 0
  assert "quarantined      2 (a loose camera)\n" in capsys.readouterr().out
  assert main(["quarantine", where, "--ids=2", "--release"]) == 0
  assert main(["quarantine", where, "--ids=2"]) == 2
  assert "give either a --reason or --release" in capsys.readouterr().err


@pytest.fixture
def third_version(open_memory, make_record, place):
  """The folder of a memory as version 3 wrote it."""
  memory = open_memory(capacity=2)
  for x in range(3):
    memory.add([make_record(float(x), ANCHOR)], token=str(x))
  memory.close()
  with sqlite3.connect(place() / schema.NAME) as connection:
    for table in ("records", "evicted"):
      connection.execute(f"ALTER TABLE {table} DROP COLUMN quarantine")
    connection.execute("PRAGMA user_version = 3")
    seal.make(connection)
  connection.close()
  return place()


def test_a_file_of_the_third_version(third_version, open_memory):
  before = (third_version / schema.NAME).read_bytes()
  assert verify.verify(third_version) == []
  with Memory.load(third_version) as reader:
    assert (len(reader), reader.quarantined()) == (2, {})
  assert (third_version / schema.NAME).read_bytes() == before
  memory = open_memory(capacity=2)
  memory.undo("2")  # what version 3 evicted comes back
  assert [identity for identity, _ in memory.records()] == [1, 2]
  memory.quarantine([1], "why")
  assert memory.index_problems() == verify.verify(third_version) == []


def test_damage_of_the_third_version_is_told_after_the_upgrade(third_version, open_memory):
  with sqlite3.connect(third_version / schema.NAME) as connection:
    connection.execute("UPDATE records SET use_count = 7 WHERE id = 2")
  connection.close()
  told = verify.verify(third_version)
  assert "are not what was written" in told[0]
  open_memory(capacity=2).close()
  assert verify.verify(third_version) == told
