"""Rows of `retrieval` and `memory`: what is left out says why, and the bytes are those of the arrays there are."""

import json

import jax
import numpy as np
import pytest

from eval import bench
from eval.benchmarks import device_memory, models, retrieval
from pi0rag_jax.memory.index import MemoryIndex
from pi0rag_jax.memory.record import Header
from pi0rag_jax.models import packing


@pytest.fixture
def few_decisions(monkeypatch):
  for name, value in {"RECORDS": (20,), "DECISIONS": 3, "WARM_UP": 1, "SEARCHES": 25}.items():
    monkeypatch.setattr(retrieval, name, value)


def run(tmp_path, *arguments):
  out = tmp_path / "rows.json"
  assert bench.main([*arguments, f"--out={out}"]) == 0
  return json.loads(out.read_text())["rows"]


def test_retrieval_has_a_row_for_each_size_of_the_index(few_decisions, tmp_path):
  rows = run(tmp_path, "retrieval", "--key-dims=16,64", "--record-counts=10,3000")
  search = {(row["records"], row["key_dim"]): row for row in rows if row["what"] == "search"}
  assert set(search) == {(10, 16), (3000, 16), (10, 64), (3000, 64)}
  for (records, key_dim), row in search.items():
    # Float16 keys of near-equal distance may change places at the last rank.
    assert row["recall"] > 0.98 and row["searches"] == 25
    assert 2 * records * key_dim / 1e6 < row["index_MB"] < 2 * records * (key_dim + 50) / 1e6
  decisions = [row for row in rows if row["what"] == "decision"]
  assert [row["size"] for row in decisions] == ["panda_small", "pi0"]
  assert all(row["total_p50_ms"] > row["steer_p50_ms"] > 0 for row in decisions)


def test_an_index_that_does_not_fit_says_so(few_decisions, tmp_path, monkeypatch):
  monkeypatch.setattr(retrieval, "available_bytes", lambda: 2_000_000)
  rows = run(tmp_path, "retrieval", "--key-dims=16", "--record-counts=10,100000")
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


def test_memory_of_the_device_is_that_of_packed_parameters_and_more(tmp_path, monkeypatch):
  assert device_memory.peak_bytes() is None  # a CPU does not count its bytes
  monkeypatch.setattr(device_memory, "peak_bytes", lambda: 5_000_000)
  rows = run(tmp_path, "memory", "--size=dummy", "--records=100", "--cameras=1", "--steps=1")
  assert [row["what"] for row in rows] == ["host", "host", "device"]
  config = models.SIZES["dummy"]
  packed, _ = packing.pack(models.params(config), config)
  row = rows[2]
  assert row["parameters_MB"] == pytest.approx(sum(x.nbytes for x in jax.tree.leaves(packed)) / 1e6, abs=1e-3)
  assert row["total_MB"] == pytest.approx(
    row["parameters_MB"] + row["inputs_MB"] + row["temporary_MB"] + row["output_MB"], abs=2e-3)
  assert row["peak_MB"] == 5


@pytest.mark.parametrize("size", ["dummy", "pi05_dummy"])
def test_shapes_of_packed_parameters_need_no_parameters(size):
  config = models.SIZES[size]
  packed, _ = packing.pack(models.params(config), config)
  shape = lambda x: (x.shape, x.dtype)  # noqa: E731
  assert jax.tree.map(shape, device_memory.packed_shapes(config)) == jax.tree.map(shape, packed)
