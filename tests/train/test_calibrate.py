"""Where a policy's keys lie, by several recipes."""

import json

import jax
import numpy as np
import pytest
import tiny

from pi0rag_jax.data.episodes import episode_path, write_episodes
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.backbones import mobilenet_torch
from pi0rag_jax.policy import keys
from pi0rag_jax.policy.directory import load
from pi0rag_jax.policy.spec import PolicySpec
from train import calibrate, columns, debug_data


@pytest.fixture(scope="module")
def episodes():
  """Four episodes of two random observations."""
  rng = np.random.default_rng(0)
  return [[{"image": {name: rng.integers(0, 256, (64, 64, 3), np.uint8) for name in ("base_0_rgb", "left_wrist_0_rgb")},
            "state": rng.standard_normal(10).astype(np.float32), "prompt": "pick up the red cube"} for _ in range(2)]
          for _ in range(4)]


def _keys(directory, stats, episodes) -> np.ndarray:
  return calibrate._keys(load(directory, key_stats=stats), episodes)


def test_statistics_are_those_of_the_policys_own_keys(tiny_policy_dir, episodes):
  stats = calibrate.calibrate(tiny_policy_dir, episodes, keys.KeyRecipe(state_weight=0.5))
  key_NE = _keys(tiny_policy_dir, stats, episodes)
  assert stats.unit_distance == pytest.approx(keys.unit_distance(key_NE, np.repeat(range(4), 2)), rel=1e-4)
  np.testing.assert_allclose(key_NE[:, :16].mean(axis=0), 0, atol=1e-4)


def test_each_number_of_the_state_counts_by_its_spread(tiny_policy_dir, episodes):
  stats = calibrate.calibrate(tiny_policy_dir, episodes, keys.KeyRecipe(state_scale="spread"))
  state_NP = _keys(tiny_policy_dir, stats, episodes)[:, 16:]
  np.testing.assert_allclose(state_NP.mean(axis=0), 0, atol=1e-5)
  np.testing.assert_allclose(state_NP.std(axis=0), 1 / np.sqrt(10), rtol=1e-3)


def test_keys_of_principal_components_are_those_of_whole_features(tiny_policy_dir, episodes):
  whole = calibrate.calibrate(tiny_policy_dir, episodes, keys.KeyRecipe(pool="parts", state_weight=0.0))
  recipe = keys.KeyRecipe(pool="parts", state_weight=0.0, projection="pca", projection_dim=512)
  pca = calibrate.calibrate(tiny_policy_dir, episodes, recipe)
  # Eight observations span seven dimensions, and those keep every distance.
  assert pca.recipe.projection_dim == 7 and pca.key_dim(10) == 7 and len(pca.mean) == 48
  assert pca.unit_distance == pytest.approx(whole.unit_distance, rel=1e-3)


def test_the_light_encoder_is_kept_with_the_keys(tiny_policy_dir, episodes, tmp_path):
  recipe = keys.KeyRecipe("light", pool="camera")
  stats = calibrate.calibrate(tiny_policy_dir, episodes, recipe)
  assert stats.recipe.name.startswith("light-random-") and stats.key_dim(10) == 2 * 512 + 10
  stats.save(tmp_path)
  assert (tmp_path / "key_stats.npz").stat().st_size <= 5e6
  loaded = keys.KeyStats.load(tmp_path).params["encoder"]
  jax.tree.map(np.testing.assert_array_equal, loaded, dict(stats.params["encoder"]))
  # Both cameras tell pictures apart.
  assert stats.unit_distance > 1 and (stats.std[:512] > 0).mean() > 0.9 and (stats.std[512:] > 0).mean() > 0.9


def test_torchvisions_weights_become_the_trunk(tiny_policy_dir, tmp_path):
  safetensors = pytest.importorskip("safetensors.numpy")
  recipe, model = keys.KeyRecipe("light"), PolicySpec.load(tiny_policy_dir).network
  params = jax.eval_shape(keys.light_encoder(recipe, model).init, jax.random.key(0))
  tensors, rng = {}, np.random.default_rng(0)
  for name, path in mobilenet_torch.tensor_names():
    shape = params
    for part in path.split("/"):
      shape = shape[part]
    shape = shape.shape
    if path.endswith("kernel"):
      shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else (*shape[::-1], 1, 1)
    tensors[name] = rng.uniform(0.1, 1.0, shape).astype(np.float32)
  safetensors.save_file(tensors, tmp_path / "mobilenet.safetensors")
  named, loaded = calibrate.light_encoder(recipe, model, str(tmp_path / "mobilenet.safetensors"))
  assert named.weights.startswith("torchvision-")
  stem = np.asarray(loaded["params"]["trunk"]["stem"]["conv"]["kernel"])
  np.testing.assert_array_equal(stem, tensors["features.0.0.weight"].transpose(2, 3, 1, 0))
  assert jax.tree.structure(loaded) == jax.tree.structure(params)
  with pytest.raises(Pi0RagError, match="no weights at"):
    calibrate.light_encoder(recipe, model, str(tmp_path / "missing.safetensors"))


def test_the_command_names_what_it_cannot_do(tiny_policy_dir, tmp_path, capsys):
  given = ["--policy", str(tiny_policy_dir), "--data", str(tmp_path)]
  assert calibrate.main([*given, "--source=light", "--pool=parts"]) == 2
  assert calibrate.main([*given, "--name=a/b"]) == 2
  assert "letters, digits" in capsys.readouterr().err


def test_demonstrations_of_every_task_are_looked_at(tmp_path, monkeypatch):
  for task in ("pouring", "stacking"):
    for seed in range(4):
      folder = tmp_path / task
      write_episodes(episode_path(folder, seed), [tiny.make_episode(seed, frames=3, prompt=task)])
  monkeypatch.setattr(calibrate, "EPISODES", 4)
  opened = columns.open_columns(tmp_path, {"image": {name: name for name in tiny.CAMERAS}, "state": "state"})
  shown = [observations[0]["prompt"] for observations in calibrate.observations(*opened)]
  assert shown == ["pouring"] * 2 + ["stacking"] * 2


def test_keys_of_a_policy_on_recordings_of_other_columns(tiny_policy_dir, tmp_path, capsys, monkeypatch):
  """A data set of another format's columns, through the robot's own transforms; the shipped ones stay as they are."""
  data = debug_data.make(tmp_path / "data")
  given = [f"--policy={tiny_policy_dir}", f"--data={data}", f"--out={tmp_path / 'keys'}", "--name=mine"]
  assert calibrate.main(given) == 2 and "no camera" in capsys.readouterr().err
  monkeypatch.setattr(calibrate, "EPISODES", 2)
  named = {"image": {"base_0_rgb": "front", "left_wrist_0_rgb": "wrist"}, "state": "state"}
  wide = debug_data.make(tmp_path / "wide", "debug_two_arms")
  named["state"] = "state[0:10]"
  assert calibrate.main([*given[:1], f"--data={wide}", *given[2:], f"--columns={json.dumps(named)}"]) == 0
  stats = keys.KeyStats.load(tmp_path / "keys", "mine")
  assert stats.recipe.source == "hidden" and stats.unit_distance > 0
  assert calibrate.main(["--policy=panda_small", f"--data={data}"]) == 2
  assert "give --out, a folder" in capsys.readouterr().err
