import json
import pathlib

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi.norm_stats import load_norm_stats, save_norm_stats

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "pi0" / "checkpoint"


def test_openpis_file_loads():
  stats = load_norm_stats(GOLDEN, "droid")
  assert sorted(stats) == ["actions", "state"]
  assert stats["state"]["mean"].shape == (8,) and stats["state"]["q99"].dtype == np.float64
  assert stats["state"]["mean"][0] == 0.6291259400455499


def test_an_asset_id_may_have_a_slash():
  assert load_norm_stats(GOLDEN, "physical-intelligence/libero")["actions"]["std"].shape == (7,)


def test_saved_and_loaded_again_without_quantiles(tmp_path):
  stats = {"state": {"mean": np.array([1.0, 2.0]), "std": np.array([3.0, 4.0])}}
  save_norm_stats(tmp_path, "robot", stats)
  save_norm_stats(tmp_path / "assets", "robot", stats)
  loaded = load_norm_stats(tmp_path, "robot")["state"]
  np.testing.assert_array_equal(loaded["std"], [3.0, 4.0])
  assert loaded["q01"] is None and loaded["q99"] is None
  assert [f.name for f in (tmp_path / "assets" / "robot").iterdir()] == ["norm_stats.json"]
  written = json.loads((tmp_path / "assets" / "robot" / "norm_stats.json").read_text())
  assert written == {"norm_stats": {"state": {"mean": [1.0, 2.0], "std": [3.0, 4.0], "q01": None, "q99": None}}}


def test_a_missing_asset_names_the_ones_present():
  with pytest.raises(Pi0RagError, match=r"'ur5'.*present: droid, physical-intelligence/libero, trossen"):
    load_norm_stats(GOLDEN, "ur5")


@pytest.mark.parametrize(("text", "message"), [
  ("{", "expected openpi's"),
  ('{"state": {}}', "expected openpi's"),
  ('{"norm_stats": {"state": {"mean": [1.0]}}}', "state lacks std"),
  ('{"norm_stats": {"state": {"mean": [1.0], "std": [1.0, 2.0]}}}', "different shapes"),
  ('{"norm_stats": {"state": {"mean": [1.0, NaN], "std": [1, 2]}}}', r"state, mean\[1\] is nan, allowed: finite"),
  ('{"norm_stats": {"state": {"mean": [1.0, null], "std": [1, 2]}}}', r"state, mean\[1\] is None"),
  ('{"norm_stats": {"state": {"mean": [1.0], "std": [1e60]}}}', r"state, std\[0\] is 1e\+60"),
  ('{"norm_stats": {"state": {"mean": "x", "std": [1]}}}', r"state, mean is 'x', expected a list"),
  ('{"norm_stats": {"state": {"mean": [1.0], "std": [-1]}}}', r"std\[0\] is -1, allowed: 0 or more"),
  ('{"norm_stats": {"state": {"mean": [0], "std": [1], "q01": [2], "q99": [1]}}}', r"q01\[0\] is 2, above q99\[0\], 1"),
  ("version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
  ("[" * 100_000, "expected openpi's"),
])
def test_a_broken_file_is_named(tmp_path, text, message):
  file = tmp_path / "assets" / "robot" / "norm_stats.json"
  file.parent.mkdir(parents=True)
  file.write_text(text)
  with pytest.raises(Pi0RagError, match=message):
    load_norm_stats(tmp_path, "robot")
