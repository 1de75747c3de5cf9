"""Normalization by z-scores and quantiles, against openpi's records."""

import dataclasses

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi.norm_stats import load_norm_stats, save_norm_stats
from pi0rag_jax.robots import normalize
from pi0rag_jax.robots.normalize import NormStats
from pi0rag_jax.robots.transforms import Normalize, Unnormalize

STATS = NormStats(np.array([1.0, -2.0, 0.0]), np.array([2.0, 0.5, 0.0]), np.array([-1.0, -3.0, 0.0]),
                  np.array([3.0, 0.0, 0.0]))


def stats_of(arrays, key):
  return NormStats(*(arrays[f"norm/stats/{key}/{name}"] for name in ("mean", "std", "q01", "q99")))


@pytest.mark.parametrize("quantile", [False, True])
def test_recorded_normalization(recorded, quantile):
  arrays, kind = recorded["arrays"], "quantile" if quantile else "zscore"
  for key, name in (("state", "state_short8"), ("actions", "actions7")):
    found = normalize.normalize(arrays[f"norm/in/{name}"], stats_of(arrays, key), quantile=quantile)
    np.testing.assert_array_equal(found, arrays[f"norm/{kind}/normalize/{key}"])
    assert str(found.dtype) == recorded["normalize_notes"]["output_dtype"][f"norm/{kind}/normalize/{key}"]


@pytest.mark.parametrize("quantile", [False, True])
def test_recorded_unnormalization(recorded, quantile):
  arrays, kind = recorded["arrays"], "quantile" if quantile else "zscore"
  for key, name in (("state", "state10_f32"), ("actions", "actions12_f32")):
    found = normalize.unnormalize(arrays[f"norm/in/{name}"], stats_of(arrays, key), quantile=quantile)
    np.testing.assert_array_equal(found, arrays[f"norm/{kind}/unnormalize/{key}"])
    assert found.dtype == np.float64


@pytest.mark.parametrize("quantile", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_unnormalizing_undoes_normalizing(quantile, seed):
  rng = np.random.default_rng(seed)
  dims = int(rng.integers(1, 15))
  low, span = rng.normal(scale=10, size=dims), rng.exponential(size=dims) * (rng.random(dims) < 0.8)
  stats = NormStats(low, span, low, low + span)
  x = rng.normal(scale=3, size=(*rng.integers(1, 5, rng.integers(0, 3)), dims))
  back = normalize.unnormalize(normalize.normalize(x, stats, quantile=quantile), stats, quantile=quantile)
  np.testing.assert_allclose(back, x, atol=1e-9)


def test_quantiles_become_minus_one_and_one():
  found = normalize.normalize(np.array([[-1.0, -3.0], [3.0, 0.0]]), STATS, quantile=True)
  np.testing.assert_allclose(found, [[-1, -1], [1, 1]], atol=1e-5)


def test_openpis_file_is_read_and_written_alike(recorded, tmp_path):
  file = tmp_path / "assets" / "robot" / "norm_stats.json"
  file.parent.mkdir(parents=True)
  file.write_text(recorded["norm_stats_json_text"])
  stats = load_norm_stats(tmp_path, "robot")
  for key in ("state", "actions"):
    for name, wanted in dataclasses.asdict(stats_of(recorded["arrays"], key)).items():
      np.testing.assert_array_equal(stats[key][name], wanted)
  save_norm_stats(tmp_path, "again", stats)
  assert (tmp_path / "assets" / "again" / "norm_stats.json").read_text() == recorded["norm_stats_json_text"]


def test_what_openpi_refuses_is_refused(recorded):
  """All but a missing entry while normalizing, which openpi too refuses only on request."""
  x, plain = {"state": np.zeros(3)}, {"state": NormStats(STATS.mean, STATS.std)}
  refused = {
    "unnormalize_missing": lambda: Unnormalize({"state": STATS})({"actions": np.zeros(3)}),
    "quantile_without_q": lambda: Normalize(plain, quantile=True)(x),
    "unnormalize_zscore_stats_longer_than_x": lambda: Unnormalize({"state": STATS})({"state": np.zeros(2)}),
  }
  assert recorded["normalize_errors"].keys() == refused.keys() | {"strict_missing"}
  for call in refused.values():
    with pytest.raises(Pi0RagError):
      call()
  assert Normalize({"state": STATS, "actions": STATS})(x).keys() == {"state"}


def test_statistics_of_another_robot_are_refused():
  with pytest.raises(Pi0RagError, match=r"array has 4 dims, the norm stats have 3: they belong to another robot"):
    normalize.normalize(np.zeros(4), STATS)
  with pytest.raises(Pi0RagError, match=r"array has 2 dims, the norm stats have 3"):
    normalize.unnormalize(np.zeros(2), STATS, quantile=True)


def test_missing_quantiles_are_named():
  with pytest.raises(Pi0RagError, match=r"no q01 and q99: pi0.5 and pi0-FAST normalize by quantiles"):
    normalize.normalize(np.zeros(3), NormStats(STATS.mean, STATS.std), quantile=True)


def test_recorded_padding(recorded):
  for case in recorded["pad_to_dim"]:
    found = normalize.pad_to_dim(case["in_"], case["target"], axis=case["axis"], value=case["value"])
    np.testing.assert_array_equal(found, case["out"])


def test_an_array_wider_than_the_model_is_refused():
  with pytest.raises(Pi0RagError, match=r"array has 5 dims, the model takes at most 4"):
    normalize.pad_last(np.zeros((2, 5)), 4)
