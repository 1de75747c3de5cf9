"""Keys: what is pooled, how it is projected, and what is kept of it beside a policy."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.pi0 import PrefixOutput
from pi0rag_jax.policy import keys
from pi0rag_jax.policy.spec import PolicySpec


@pytest.fixture
def model(tiny_policy_dir):
  """Two cameras of 4 tokens each, then 16 of the prompt; width 16."""
  return PolicySpec.load(tiny_policy_dir).network


@pytest.fixture
def prefix(model):
  """Tokens that hold 1 and 2 for the cameras and 4 for the prompt, of which half is padding with something else."""
  values_S = np.repeat([1.0, 2.0, 4.0, 99.0], [4, 4, 8, 8])
  hidden_BSD = jnp.asarray(np.broadcast_to(values_S[None, :, None], (1, 24, 16)))
  cache = jnp.zeros((1, 1, 24, 1, 16)), hidden_BSD[None, :, :, None] * 10
  return PrefixOutput(hidden_BSD, jnp.asarray(values_S < 99)[None], cache, -hidden_BSD)


@pytest.mark.parametrize(("fields", "expected"), [
  ({}, [(4 * 1 + 4 * 2 + 8 * 4) / 16]),
  ({"pool": "camera"}, [1, 2]),
  ({"pool": "parts"}, [1, 2, 4]),
  ({"source": "tokens", "pool": "camera"}, [-1, -2]),
  ({"source": "values", "pool": "parts"}, [10, 20, 40]),
])
def test_each_pool_is_the_mean_of_its_own_tokens(model, prefix, fields, expected):
  recipe = keys.KeyRecipe(**fields)
  pooled_BD = keys.features(prefix, Observation({}, {}, jnp.zeros((1, 10))), recipe, model, {}, seen=model.image_keys)
  np.testing.assert_allclose(pooled_BD, np.repeat(expected, 16)[None], rtol=1e-6)
  assert pooled_BD.shape[-1] == keys.feature_width(recipe, model)


def test_names_tell_recipes_apart_and_known_ones_keep_theirs():
  assert keys.KeyRecipe().name == "hidden+state1"
  assert keys.KeyRecipe("values", 0.5, 64).name == "values-project64+state0.5"
  assert keys.KeyRecipe("tokens", 0.0, 8, "parts", "pca").name == "tokens-parts-pca8+state0"
  assert keys.KeyRecipe("light", pool="camera", weights="random-1a").name == "light-random-1a-camera+state1"


def test_wrong_recipes_say_what_is_allowed():
  with pytest.raises(Pi0RagError, match="camera, mean, parts"):
    keys.KeyRecipe(pool="max")
  with pytest.raises(Pi0RagError, match="hidden, light, tokens, values"):
    keys.KeyRecipe("siglip")
  with pytest.raises(Pi0RagError, match="pca, random"):
    keys.KeyRecipe(projection="ica")
  with pytest.raises(Pi0RagError, match="does not read: mean, camera"):
    keys.KeyRecipe("light", pool="parts")


def test_principal_components_are_the_directions_of_largest_variance():
  rng = np.random.default_rng(0)
  wanted = np.linalg.qr(rng.standard_normal((6, 6)))[0]
  data_ND = rng.standard_normal((500, 6)) * [9, 3, 1, 0.1, 0.1, 0.1] @ wanted.T + 5
  found = keys.principal_components(data_ND, 3)
  np.testing.assert_allclose(np.abs(wanted.T[:3] @ found), np.eye(3), atol=0.1)
  np.testing.assert_allclose(found.T @ found, np.eye(3), atol=1e-5)
  np.testing.assert_array_equal(found, keys.principal_components(data_ND, 3))
  assert found.max(axis=0).min() > -found.min(axis=0).max() or (np.abs(found).max(axis=0) == found.max(axis=0)).all()
  assert keys.principal_components(data_ND, 512).shape == (6, 6)
  assert keys.principal_components(data_ND[:4], 512).shape == (6, 3)


def test_a_whole_set_of_components_keeps_all_distances():
  rng = np.random.default_rng(1)
  pooled_BD, state_BP = rng.standard_normal((20, 6)).astype(np.float32), np.zeros((20, 2), np.float32)
  stats = keys.KeyStats(keys.KeyRecipe(projection_dim=6, projection="pca"), pooled_BD.mean(axis=0),
                        pooled_BD.std(axis=0), 1.0, keys.principal_components(pooled_BD, 6))
  plain = keys.KeyStats(keys.KeyRecipe(), stats.mean, stats.std, 1.0)
  rotated_BE, whole_BE = (np.asarray(keys.make_key(pooled_BD, state_BP, s, s.params)) for s in (stats, plain))
  apart = lambda e: np.linalg.norm(e[:, None] - e[None], axis=-1)  # noqa: E731
  np.testing.assert_allclose(apart(rotated_BE), apart(whole_BE), atol=1e-5)
  assert rotated_BE.shape[-1] == stats.key_dim(2) == 8


@pytest.mark.parametrize("projection", keys.PROJECTIONS)
def test_keys_are_projected_alike_on_every_machine(rounded_products, projection):
  stats = keys.KeyStats(keys.KeyRecipe(projection=projection, projection_dim=2), np.zeros(6), np.ones(6), 1.0,
                        np.ones((6, 2), np.float32))
  assert not rounded_products(lambda *args: keys.make_key(*args, stats, stats.params), np.ones((1, 6), np.float32),
                              np.ones((1, 3), np.float32))
  assert rounded_products(jnp.matmul, np.ones((2, 2), np.float32), np.ones((2, 2), np.float32))  # else none is seen


def test_the_light_encoder_sees_alike_on_every_machine(rounded_products, model, prefix, monkeypatch):
  encoder = types.SimpleNamespace(encode=lambda params, obs: obs.state @ params)  # of the real one's 50 products, one
  monkeypatch.setattr(keys, "light_encoder", lambda recipe, model: encoder)
  features = lambda image, weight: keys.features(  # noqa: E731
    prefix, Observation({"base_0_rgb": image}, {}, jnp.ones((1, 2))), keys.KeyRecipe("light"), model,
    {"encoder": weight}, seen=model.image_keys)
  assert not rounded_products(features, np.ones((1, 4, 4, 3), np.float32), np.ones((2, 2), np.float32))


def test_several_kinds_of_keys_lie_beside_one_policy(tmp_path):
  own = keys.KeyStats.identity(keys.KeyRecipe(), 4)
  pca = keys.KeyStats(keys.KeyRecipe(projection_dim=2, projection="pca"), np.arange(4.0), np.ones(4), 0.5,
                      np.eye(4, 2, dtype=np.float32))
  light = keys.KeyStats.identity(keys.KeyRecipe("light", weights="random-0"), 4,
                                 {"params": {"out": {"bias": np.ones(3, np.float32)}}})
  own.save(tmp_path)
  pca.save(tmp_path, "pca")
  light.save(tmp_path, "light_1")
  assert keys.KeyStats.load(tmp_path).recipe == own.recipe
  loaded = keys.KeyStats.load(tmp_path, "pca")
  assert loaded.recipe == pca.recipe and loaded.unit_distance == 0.5
  np.testing.assert_array_equal(loaded.params["projection"], pca.components)
  np.testing.assert_array_equal(keys.KeyStats.load(tmp_path, "light_1").params["encoder"]["params"]["out"]["bias"], 1)
  with pytest.raises(Pi0RagError, match=r"no key_stats.other.json in .* \(there are: light_1, pca\).*--name=other"):
    keys.KeyStats.load(tmp_path, "other")
  with pytest.raises(Pi0RagError, match="letters, digits"):
    pca.save(tmp_path, "../pca")
  own.save(tmp_path, "pca")
  assert not (tmp_path / "key_stats.pca.npz").exists()


def test_statistics_without_their_arrays_are_refused(tmp_path):
  recipe = keys.KeyRecipe(projection_dim=2, projection="pca")
  keys.KeyStats(recipe, np.zeros(4), np.ones(4), 1.0, np.eye(4, 2, dtype=np.float32)).save(tmp_path)
  (tmp_path / "key_stats.npz").unlink()
  with pytest.raises(Pi0RagError, match=r"key_stats.npz in .* does not belong to the keys 'hidden-pca2\+state1'"):
    keys.KeyStats.load(tmp_path)
  (tmp_path / "key_stats.npz").write_bytes(b"no archive")
  with pytest.raises(Pi0RagError, match="is damaged"):
    keys.KeyStats.load(tmp_path)


def test_proprioception_by_its_spread_shows_what_the_policy_does_not_see(tmp_path):
  recipe = keys.KeyRecipe(state_scale="spread")
  stats = keys.KeyStats(recipe, np.zeros(1), np.ones(1), 1.0, state_mean=np.array([1.0, 2e-9, 5.0]),
                        state_std=np.array([2.0, 1e-9, 0.0]))
  stats.save(tmp_path)
  loaded = keys.KeyStats.load(tmp_path)
  state_BP = np.array([[3.0, 5e-9, 5.0], [1.0, 2e-9, 6.0]], np.float32)
  key_BE = np.asarray(keys.make_key(np.zeros((2, 1), np.float32), state_BP, loaded, {})) * np.sqrt(3)
  np.testing.assert_allclose(key_BE, [[0, 1, 3, 0], [0, 0, 0, keys.STATE_LIMIT]], rtol=1e-5)
  assert loaded.recipe.name == "hidden+state1-spread"

  text = (tmp_path / keys.FILE_NAME).read_text().replace("state_std", "other")
  (tmp_path / keys.FILE_NAME).write_text(text)
  with pytest.raises(Pi0RagError, match=r"does not belong to the keys 'hidden\+state1-spread'"):
    keys.KeyStats.load(tmp_path)


def test_a_camera_that_is_absent_pools_to_zeros(model, prefix):
  """The key keeps its width, whatever cameras a batch has."""
  alone = PrefixOutput(prefix.hidden_BSD[:, 4:], prefix.mask_BS[:, 4:], prefix.kv_cache, prefix.tokens_BSD[:, 4:])
  pooled_BD = keys.features(alone, Observation({}, {}, jnp.zeros((1, 10))), keys.KeyRecipe(pool="parts"), model, {},
                            seen=model.image_keys[1:])
  np.testing.assert_allclose(pooled_BD, np.repeat([0, 2, 4], 16)[None], rtol=1e-6)


def test_keys_that_nobody_calibrated_say_so(model, tmp_path):
  stats = keys.KeyStats.uncalibrated(model)
  assert stats.name == "values+state1-uncalibrated" and stats.unit_distance is None
  stats.save(tmp_path)
  assert keys.KeyStats.load(tmp_path).name == stats.name


def test_the_unit_is_the_median_distance_to_another_episode():
  keys_NE = np.array([[0.0], [0.1], [1.0], [5.0]])
  assert keys.unit_distance(keys_NE, np.array([0, 0, 1, 2])) == pytest.approx(np.median([1.0, 0.9, 0.9, 4.0]))


def test_damaged_statistics_are_one_line(model, tmp_path):
  """Every byte of the file changed in turn: read as other numbers, or refused by name."""
  keys.KeyStats(keys.KeyRecipe(state_scale="spread"), np.arange(3.0), np.ones(3), 0.5, state_mean=np.zeros(2),
                state_std=np.ones(2)).save(tmp_path)
  path = tmp_path / keys.FILE_NAME
  whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
  for at in range(len(whole)):
    cut = whole[:at] if rng.random() < 0.5 else whole[:at] + bytes([rng.integers(256)]) + whole[at + 1 :]
    path.write_bytes(cut)
    try:
      keys.KeyStats.load(tmp_path)
    except Pi0RagError as error:
      refused += 1
      assert str(path.name) in str(error) or ("key " in str(error) and "\n" not in str(error))
  assert refused > len(whole) / 2
