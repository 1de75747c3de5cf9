import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy import feature_cache
from pi0rag_jax.policy.feature_cache import CacheKey

KEY = CacheKey("weights", "preprocessing", "data")
ROWS, WIDTH = 23, 3
TABLE_FD = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)


def build(root, encode=lambda rows: TABLE_FD[rows], key=KEY, **changes):
  options = {"width": WIDTH, "batch_size": 4, "shard_rows": 8} | changes
  return feature_cache.build(root, key, encode, ROWS, **options)


def test_rows_come_back_in_any_shape(tmp_path):
  cache = build(tmp_path)
  assert len(cache) == ROWS and cache.width == WIDTH
  rows = np.array([[22, 0, 7], [8, 8, 15]])
  np.testing.assert_array_equal(cache.take(rows), TABLE_FD[rows])
  np.testing.assert_array_equal(feature_cache.load(tmp_path, KEY).take(np.arange(ROWS)), TABLE_FD)
  assert cache.take([]).shape == (0, WIDTH)
  with pytest.raises(Pi0RagError, match="rows from -1 to 3, the cache has 23"):
    cache.take([-1, 3])


def test_the_backbone_always_gets_whole_batches_and_only_what_is_missing(tmp_path):
  asked = []

  def encode(rows):
    asked.append(rows)
    return TABLE_FD[rows]

  cache = build(tmp_path, encode)
  assert {len(rows) for rows in asked} == {4}
  shards = sorted(cache.directory.glob("*.npy"))
  shards[0].unlink()
  shards[2].write_bytes(shards[2].read_bytes()[:-4])
  asked.clear()
  told = []
  again = build(tmp_path, encode, shard_rows=5, dtype="float16", progress=lambda *seen: told.append(seen))
  np.testing.assert_array_equal(np.unique(np.concatenate(asked)), [*range(8), *range(16, ROWS)])
  np.testing.assert_array_equal(again.take(np.arange(ROWS)), TABLE_FD)
  assert told == [(8, ROWS), (16, ROWS), (ROWS, ROWS)]


def test_another_hash_is_another_cache(tmp_path):
  build(tmp_path)
  for part in ("weights", "preprocessing", "dataset"):
    other = CacheKey(**{"weights": "weights", "preprocessing": "preprocessing", "dataset": "data"} | {part: "x"})
    with pytest.raises(Pi0RagError, match=r"no features of these .* there are 1 others"):
      feature_cache.load(tmp_path, other)
  cache = build(tmp_path, lambda rows: -TABLE_FD[rows], key=CacheKey("x", "preprocessing", "data"))
  np.testing.assert_array_equal(cache.take([0]), -TABLE_FD[:1])


def test_a_cache_of_another_size_is_refused(tmp_path):
  cache = build(tmp_path)
  with pytest.raises(Pi0RagError, match=r"width 3, wanted 4. Remove"):
    build(tmp_path, width=4)
  (cache.directory / feature_cache.FILE_NAME).write_text("{")
  with pytest.raises(Pi0RagError, match=r"cache.json: .*: remove .* to build it anew"):
    feature_cache.load(tmp_path, KEY)


def test_an_unfinished_cache_is_not_loaded(tmp_path):
  cache = build(tmp_path)
  next(iter(cache.directory.glob("*.npy"))).unlink()
  with pytest.raises(Pi0RagError, match=r"missing or damaged .* it computes what is missing"):
    feature_cache.load(tmp_path, KEY)


@pytest.mark.parametrize("encode", [lambda rows: TABLE_FD[rows][:, :2], lambda rows: TABLE_FD[rows] * np.nan])
def test_features_that_cannot_be_are_refused(tmp_path, encode):
  with pytest.raises(Pi0RagError, match=r"features of rows 0 to 3 have shape .* wanted \(4, 3\), all finite"):
    build(tmp_path, encode)


def test_half_precision_halves_the_files(tmp_path):
  cache = build(tmp_path, dtype="float16")
  taken = cache.take(np.arange(ROWS))
  assert taken.dtype == np.float32
  np.testing.assert_allclose(taken, TABLE_FD, atol=2e-3)


def test_what_half_precision_cannot_hold_is_refused(tmp_path):
  with pytest.raises(Pi0RagError, match=r"features reach .* float16 ends at 65504: use float32"):
    build(tmp_path, lambda rows: 1e5 * (1 + np.abs(TABLE_FD[rows])), dtype="float16")


KILLED = """
import os, signal
import numpy as np
from pi0rag_jax.policy import feature_cache
def encode(rows):
  if rows[0] >= 12:
    os.kill(os.getpid(), signal.SIGKILL)
  return np.repeat(rows[:, None], 3, axis=1)
key = feature_cache.CacheKey("weights", "preprocessing", "data")
feature_cache.build({root!r}, key, encode, 23, width=3, batch_size=4, shard_rows=8)
"""


def test_a_killed_build_goes_on(tmp_path):
  code = KILLED.format(root=str(tmp_path))
  assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == -signal.SIGKILL
  asked = []

  def encode(rows):
    asked.append(rows[0])
    return np.repeat(rows[:, None], 3, axis=1)

  cache = build(tmp_path, encode)
  assert min(asked) == 8
  np.testing.assert_array_equal(cache.take(np.arange(ROWS))[:, 0], np.arange(ROWS))


def test_fingerprints():
  tree = {"a": np.arange(3, dtype=np.float32), "b": [1, None, "x"], "c": jnp.ones(2, jnp.bfloat16)}
  made = feature_cache.fingerprint(tree)
  assert made == feature_cache.fingerprint({"c": tree["c"], "b": (1, None, "x"), "a": jnp.arange(3.0)})
  changes = [{"a": np.arange(3)}, {"a": np.arange(3, dtype=np.float32)[None]}, {"b": [1, None, "y"]}, {"d": {}}]
  assert len({made, *[feature_cache.fingerprint(tree | change) for change in changes]}) == 5
  with pytest.raises(Pi0RagError, match="'/a' is a set"):
    feature_cache.fingerprint({"a": set()})
