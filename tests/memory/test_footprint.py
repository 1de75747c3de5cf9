import json

from pi0rag_jax.memory import Header, footprint
from pi0rag_jax.memory.index import MemoryIndex


def test_small_measurement(capsys):
  assert footprint.main(["--records=200", "--key_dim=16", "--chunk=8x4", "--k=4"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["chunk"] == [8, 4]
  for phase in ("filled", "opened"):
    assert 0 < found[phase]["query_p50_ms"] <= found[phase]["query_p95_ms"]
    assert found[phase]["resident_mb"] < 50


def test_full_size_is_accounted_within_the_budget():
  # 10,000 records of key 512 and chunk 50 x 32: 74.2 MB of rows, 2 MB of page cache.
  index = MemoryIndex(Header(512, 50, 32, "e", "p"), 10_000)
  assert index.nbytes() + 2_048_000 < 80e6
