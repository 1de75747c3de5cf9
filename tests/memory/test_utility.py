"""How episodes ended is kept with the records that had a say: counts, their durability, files of the first version."""

import sqlite3

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import ANCHOR, CORRECTION, Memory, portable, schema

from .conftest import BOTH


def utilities(found):
  """Returns {id: (helped, hurt, episode)} of the records found."""
  rows = zip(*(a[found.mask_BK].tolist() for a in (found.ids_BK, found.helped_BK, found.hurt_BK, found.episode_BK)))
  return {i: tuple(rest) for i, *rest in rows}


@pytest.fixture
def memory(open_memory, make_record):
  opened = open_memory()
  opened.add([make_record(0.0), make_record(1.0), make_record(2.0, ANCHOR)])
  return opened


@BOTH
def test_a_record_counts_once_per_episode_by_its_largest_say(memory, key):
  memory.record_outcome([[1, 2, -1], [1, 3, -1]], [[0.25, 0.5, 9.0], [0.75, 0.0, 9.0]], success=True)
  memory.record_outcome([1, 77], [0.5, 1.0], success=False)
  assert utilities(memory.query(key(0.0), 4)) == {1: (0.75, 0.5, 1), 2: (0.5, 0.0, 1), 3: (0.0, 0.0, 0)}
  assert (memory.episodes, memory.successes) == (2, 1)
  assert memory.index_problems() == []


@BOTH
def test_counts_are_durable_and_new_records_know_when_they_came(memory, open_memory, make_record, key):
  memory.record_outcome([1], [1.0], success=True)
  memory.add([make_record(3.0)])
  before = utilities(memory.query(key(0.0), 6))
  assert before[4] == (0.0, 0.0, 1)
  memory.close()
  again = open_memory()
  assert utilities(again.query(key(0.0), 6)) == before
  assert (again.episodes, again.successes) == (1, 1)


@BOTH
def test_what_is_frozen_or_only_read_counts_nothing(memory, open_memory, key):
  with memory.frozen():
    memory.record_outcome([1], [1.0], success=True)
  reader = open_memory(read_only=True)
  reader.record_outcome([1], [1.0], success=True)
  assert memory.episodes == reader.episodes == 0
  assert utilities(memory.query(key(0.0), 2))[1] == (0, 0, 0)


@pytest.mark.parametrize(("ids", "says", "message"), [
  ([1, 2], [1.0], r"ids have shape \(2,\), their weights \(1,\)"),
  ([1], [-1.0], "at least 0"),
  ([1], [np.nan], "finite"),
])
def test_wrong_weights(memory, ids, says, message):
  with pytest.raises(Pi0RagError, match=message):
    memory.record_outcome(ids, says, success=True)


@BOTH
def test_an_export_keeps_utilities(memory, place, tmp_path, key):
  memory.record_outcome([1], [0.5], success=True)
  memory.record_outcome([1], [0.25], success=False)
  portable.export_memory(place(), tmp_path / "out.npz")
  portable.import_memory(place("copy"), tmp_path / "out.npz")
  with Memory.load(place("copy")) as copy:
    # When it helped last is counted by each memory for itself.
    assert utilities(copy.query(key(0.0), 2))[1] == (0.5, 0.25, 0)


@pytest.fixture
def first_version(memory, tmp_path):
  """The directory of a memory as version 1 wrote it."""
  memory.close()
  with sqlite3.connect(tmp_path / "memory" / schema.NAME) as connection:
    for name in schema.ADDED:
      connection.execute(f"ALTER TABLE records DROP COLUMN {name}")
    connection.execute("PRAGMA user_version = 1")
  connection.close()
  return tmp_path / "memory"


def test_a_file_of_the_first_version_is_read_as_it_is(first_version, key):
  before = (first_version / schema.NAME).read_bytes()
  with Memory.load(first_version) as reader:
    assert len(reader) == 3 and reader.episodes == 0
    assert utilities(reader.query(key(0.0), 2))[1] == (0, 0, 0)
    assert reader.get([3])[0].kind == ANCHOR
  assert (first_version / schema.NAME).read_bytes() == before


def test_a_writer_brings_it_to_the_present_version(first_version, make_record, key):
  with Memory.load(first_version, read_only=False) as writer:
    writer.record_outcome([1], [1.0], success=False)
    writer.add([make_record(5.0, CORRECTION)])
    assert writer.index_problems() == []
  with Memory.load(first_version) as reader:
    assert utilities(reader.query(key(0.0), 2))[1] == (0, 1, 0)
    assert len(reader) == 4
