"""Rows of `retrieval`: what is left out says why, and the recall is against the exact neighbours."""

import numpy as np
import pytest

from eval.benchmarks import retrieval
from pi0rag_jax.memory.index import MemoryIndex
from pi0rag_jax.memory.record import Header


@pytest.fixture
def few_decisions(monkeypatch):
  for name, value in {"RECORDS": (20,), "DECISIONS": 3, "WARM_UP": 1, "SEARCHES": 25}.items():
    monkeypatch.setattr(retrieval, name, value)


def test_retrieval_has_a_row_for_each_size_of_the_index(few_decisions, run):
  rows = run("retrieval", "--key-dims=16,64", "--record-counts=10,3000")
  search = {(row["records"], row["key_dim"]): row for row in rows if row["what"] == "search"}
  assert set(search) == {(10, 16), (3000, 16), (10, 64), (3000, 64)}
  for (records, key_dim), row in search.items():
    # Float16 keys of near-equal distance may change places at the last rank.
    assert row["recall"] > 0.98 and row["searches"] == 25
    assert 2 * records * key_dim / 1e6 < row["index_MB"] < 2 * records * (key_dim + 50) / 1e6
  decisions = [row for row in rows if row["what"] == "decision"]
  assert [row["size"] for row in decisions] == ["panda_small", "pi0"]
  assert all(row["total_p50_ms"] > row["steer_p50_ms"] > 0 for row in decisions)


def test_an_index_that_does_not_fit_says_so(few_decisions, run, monkeypatch):
  monkeypatch.setattr(retrieval, "available_bytes", lambda: 2_000_000)
  rows = run("retrieval", "--key-dims=16", "--record-counts=10,100000")
  assert "recall" in rows[0]
  assert (rows[1]["records"], rows[1]["key_dim"]) == (100_000, 16) and "recall" not in rows[1]
  assert rows[1]["left_out"].endswith("GB, 0.002 GB of memory are available")


def test_recall_compares_with_the_exact_neighbours(monkeypatch):
  monkeypatch.setattr(retrieval, "BLOCK", 7)  # so that the best of several blocks are kept
  index = MemoryIndex(Header(8, 1, 1, "bench", "bench"), 300)
  keys_BE = np.random.default_rng(1).standard_normal((4, 8), np.float32)
  found_BK = retrieval._fill(index, keys_BE)
  all_ME = np.concatenate([block_ME for _, block_ME in retrieval._blocks(300, 8)])
  distances_BM = np.linalg.norm(keys_BE[:, None] - all_ME, axis=-1)
  np.testing.assert_array_equal(found_BK, np.argsort(distances_BM, axis=1)[:, : retrieval.K])
