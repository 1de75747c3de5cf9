"""Shuffled situations: the same keys and distances, other changes."""

import dataclasses

import numpy as np
import pytest

from pi0rag_jax.memory import ANCHOR, CORRECTION, FAILURE
from pi0rag_jax.memory.placebo import ShuffledMemory


@pytest.fixture
def memory(open_memory, make_record):
  opened = open_memory()
  opened.add([make_record(float(x), kind) for kind in (CORRECTION, ANCHOR, FAILURE) for x in range(20)])
  return opened


def test_distances_stay_and_chunks_move_within_their_kind(memory, key):
  queries, kinds = key(0.0, 7.2, 30.0), (CORRECTION, ANCHOR, FAILURE)
  true, found = memory.query(queries, 9, kinds=kinds), ShuffledMemory(memory, 0, plans=False).query(
    queries, 9, kinds=kinds)
  assert (found.distances_BK == true.distances_BK).all()
  assert (found.kind_BK == true.kind_BK).all()
  assert (found.ids_BK != true.ids_BK).mean() > 0.8
  # The chunk is the record's own: its base chunk holds the x that its key had.
  owners = {identity: record.base_chunk[0, 0] for identity, record in memory.records()}
  assert found.base_BKTA[..., 0, 0].ravel().tolist() == [owners[i] for i in found.ids_BK.ravel()]


def test_the_seed_decides_and_the_memory_stays_as_it_is(memory, key):
  before = memory.query(key(3.0), 4)
  first, again, other = (ShuffledMemory(memory, seed).query(key(3.0), 4).ids_BK.tolist() for seed in (0, 0, 1))
  assert first == again != other
  assert (memory.query(key(3.0), 4).ids_BK == before.ids_BK).all()


def test_every_record_has_one_key(memory, key):
  placebo = ShuffledMemory(memory, 0)
  found = placebo.query(key(0.0), 20, kinds=(CORRECTION,))
  assert sorted(found.ids_BK[0].tolist()) == list(range(1, 21))
  assert sorted(found.distances_BK[0].tolist()) == list(range(20))


def test_each_record_keeps_the_change_that_it_asks_for(open_memory, make_record, key):
  memory = open_memory()
  plain = [make_record(float(x)) for x in range(20)]
  memory.add([dataclasses.replace(r, corrected_chunk=r.base_chunk + 2 * x) for x, r in enumerate(plain)])
  found = ShuffledMemory(memory, 0).query(key(0.0), 20, kinds=(CORRECTION,))
  base_K, corrected_K = found.base_BKTA[0, :, 0, 0], found.corrected_BKTA[0, :, 0, 0]
  np.testing.assert_array_equal(base_K, found.distances_BK[0])  # of whoever had the key
  np.testing.assert_allclose(corrected_K - base_K, 2 * (found.ids_BK[0] - 1), atol=0.05)
  assert (found.ids_BK[0] - 1 != base_K).mean() > 0.8
