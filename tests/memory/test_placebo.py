"""Shuffled keys: the same records and distances, other owners."""

import pytest

from pi0rag_jax.memory import ANCHOR, CORRECTION, FAILURE
from pi0rag_jax.memory.placebo import ShuffledKeys


@pytest.fixture
def memory(open_memory, make_record):
  opened = open_memory()
  opened.add([make_record(float(x), kind) for kind in (CORRECTION, ANCHOR, FAILURE) for x in range(20)])
  return opened


def test_distances_stay_and_chunks_move_within_their_kind(memory, key):
  queries, kinds = key(0.0, 7.2, 30.0), (CORRECTION, ANCHOR, FAILURE)
  true, found = memory.query(queries, 9, kinds=kinds), ShuffledKeys(memory, 0).query(queries, 9, kinds=kinds)
  assert (found.distances_BK == true.distances_BK).all()
  assert (found.kind_BK == true.kind_BK).all()
  assert (found.ids_BK != true.ids_BK).mean() > 0.8
  # The chunk is the record's own: its base chunk holds the x that its key had.
  owners = {identity: record.base_chunk[0, 0] for identity, record in memory.records()}
  assert found.base_BKTA[..., 0, 0].ravel().tolist() == [owners[i] for i in found.ids_BK.ravel()]


def test_the_seed_decides_and_the_memory_stays_as_it_is(memory, key):
  before = memory.query(key(3.0), 4)
  first, again, other = (ShuffledKeys(memory, seed).query(key(3.0), 4).ids_BK.tolist() for seed in (0, 0, 1))
  assert first == again != other
  assert (memory.query(key(3.0), 4).ids_BK == before.ids_BK).all()


def test_every_record_has_one_key(memory, key):
  placebo = ShuffledKeys(memory, 0)
  found = placebo.query(key(0.0), 20, kinds=(CORRECTION,))
  assert sorted(found.ids_BK[0].tolist()) == list(range(1, 21))
  assert sorted(found.distances_BK[0].tolist()) == list(range(20))
