import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import ANCHOR, Neighbours, bridge

FIELDS = ("distances_BK", "base_BKTA", "corrected_BKTA", "kind_BK", "mask_BK")


class Search:
  """A memory's neighbours as a dict, without the 64-bit ids that jax does not take."""

  def __init__(self, memory, k, **options):
    self._memory, self._k, self._options = memory, k, options

  def __call__(self, keys_BE):
    found = self._memory.query(keys_BE, self._k, **self._options)
    return {name: getattr(found, name) for name in FIELDS}

  def empty(self, batch):
    nothing = Neighbours.empty(batch, self._k, self._memory.header)
    return {name: getattr(nothing, name) for name in FIELDS}


@pytest.fixture
def memory(open_memory, make_record):
  memory = open_memory()
  memory.add([make_record(float(x), kind) for kind in ("correction", ANCHOR) for x in range(3)])
  return memory


def assert_equal(a, b):
  for name in FIELDS:
    np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]), err_msg=name)


def test_both_ways_equal_the_query(memory, key):
  keys_BE, search = key(0.2, 1.9), Search(memory, 8)
  assert_equal(jax.jit(bridge.callback_query(search))(keys_BE), search(keys_BE))
  with bridge.OverlapQuery(search) as overlap:
    assert_equal(overlap.submit(jnp.asarray(keys_BE)).result(), search(keys_BE))
    assert overlap.deadline_misses == 0


def test_callback_inside_a_larger_program(memory, key):
  query = bridge.callback_query(Search(memory, 4))

  @jax.jit
  def program(keys_BE):
    found = query(keys_BE * 2)
    residual_BKTA = (found["corrected_BKTA"] - found["base_BKTA"]) * found["mask_BK"][..., None, None]
    return residual_BKTA.sum(axis=1)

  assert program(key(0.0)).tolist() == [[[4.0, 4.0]] * 3]


def test_callback_sees_additions_after_compilation(memory, make_record, key):
  query = jax.jit(bridge.callback_query(Search(memory, 2)))
  assert query(key(7.0))["distances_BK"][0, 0] == pytest.approx(5.0)
  memory.add([make_record(7.0)])
  assert query(key(7.0))["distances_BK"][0, 0] == 0


def test_vmap_keeps_leading_axes(memory, key):
  query = bridge.callback_query(Search(memory, 4))
  keys_VBE = np.stack([key(0.0, 1.0), key(2.0, 0.0), key(1.0, 1.0)])
  mapped = jax.jit(jax.vmap(query))(keys_VBE)
  assert mapped["base_BKTA"].shape == (3, 2, 4, 3, 2)
  for v in range(3):
    assert_equal(jax.tree.map(lambda array, v=v: array[v], mapped), query(keys_VBE[v]))


def test_errors_surface_from_the_callback(memory):
  with pytest.raises(Exception, match="not finite"):
    jax.block_until_ready(jax.jit(bridge.callback_query(Search(memory, 4)))(np.full((1, 4), np.nan, np.float32)))


class SlowMemory:
  """A memory whose searches wait for `release`, though not longer than ten seconds, and then fail if told to."""

  def __init__(self, memory):
    self.header, self.release, self.error, self._memory = memory.header, threading.Event(), None, memory

  def query(self, *arguments, **options):
    self.release.wait(10.0)
    if self.error:
      raise self.error
    return self._memory.query(*arguments, **options)


def test_a_missed_deadline_gives_masked_neighbours_and_is_counted(memory, key):
  slow = SlowMemory(memory)
  with bridge.OverlapQuery(Search(slow, 4), deadline_s=0.02) as overlap:
    pending = overlap.submit(key(0.0, 1.0))
    assert not pending.done()
    found = pending.result()
    assert not found["mask_BK"].any()
    assert found["base_BKTA"].shape == (2, 4, 3, 2)
    slow.release.set()
    assert pending.result() is found
    assert overlap.deadline_misses == 1
    assert_equal(overlap.submit(key(0.0)).result(), Search(memory, 4)(key(0.0)))
    assert overlap.deadline_misses == 1


def test_the_deadline_counts_from_the_submission(memory, key):
  with bridge.OverlapQuery(Search(memory, 4), deadline_s=0.2) as overlap:
    pending = overlap.submit(key(0.0))
    time.sleep(0.3)
    # The search has long finished: it was in time, however late its result is taken.
    assert pending.result()["mask_BK"].any()
    assert overlap.deadline_misses == 0


def test_errors_surface_from_the_worker(memory, key):
  with bridge.OverlapQuery(Search(memory, 4), deadline_s=5) as overlap, pytest.raises(Pi0RagError, match="not finite"):
    overlap.submit(key(np.nan)).result()


def test_an_error_after_the_deadline_surfaces_at_the_next_call(memory, key):
  slow = SlowMemory(memory)
  slow.error = RuntimeError("broken search")
  overlap = bridge.OverlapQuery(Search(slow, 4), deadline_s=0.01)
  overlap.submit(key(0.0)).result()
  slow.release.set()
  with pytest.raises(RuntimeError, match="broken search"):
    overlap.close()
  overlap.close()


def test_a_search_behind_a_stuck_one_keeps_its_own_deadline(memory, key):
  slow = SlowMemory(memory)
  with bridge.OverlapQuery(Search(slow, 4), deadline_s=0.02) as overlap:
    began_s = time.monotonic()
    pending = [overlap.submit(jnp.asarray(key(0.0))) for _ in range(3)]
    assert not any(p.result()["mask_BK"].any() for p in pending)
    assert time.monotonic() - began_s < 5.0  # the first is stuck for ten
    assert overlap.deadline_misses == 3
    slow.release.set()
    assert overlap.submit(key(0.0)).result()["mask_BK"].any()  # those that missed left the queue
