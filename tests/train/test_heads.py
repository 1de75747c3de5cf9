"""Training of heads on cached features: it learns, resumes exactly, exports a policy that runs, refuses mistakes."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
from absl import flags
from grid_backbone import Grid, expected_features
from ml_collections import ConfigDict, config_flags

from configs import mobile_vla_lstm, robovlms_lstm
from pi0rag_jax.curation import embeddings, export, selection
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.backbones import base as backbones
from pi0rag_jax.models.heads import losses, presets
from pi0rag_jax.models.heads.base import HeadOutput
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.policy import __main__ as commands
from pi0rag_jax.policy import backbone, directory, feature_cache
from pi0rag_jax.steering.agent import Agent
from train import debug_data, gripper_metrics, head_backbone, heads, loop, metrics, step
from train.curation import policies

CAMERAS = {"base_0_rgb": "front", "left_wrist_0_rgb": "wrist"}


@pytest.fixture(scope="module", autouse=True)
def grid():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(backbones.BACKBONES, "grid", Grid)
    yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return debug_data.make(tmp_path_factory.mktemp("data") / "robot")


def make_config(data, *, head=None, backbone=None, fields=None, **changes) -> Any:
  """Returns the debug variant on the grid backbone, which needs no compiling, with few steps.

  The schedule is the same for any number of steps, and so is the program, which is compiled once.
  """
  config: Any = mobile_vla_lstm.get_config("debug").copy_and_resolve_references()
  config.unlock()
  config.data = ({"path": str(data)},)
  config.backbone = {"name": "grid", "checkpoint": "", **(backbone or {})}
  config.head.update({"hidden": 64, **(head or {})})
  config.fields.update(fields or {})
  config.update({"steps": 4, "decay_steps": 200, "log_every": 2, "validate_every": 2})
  config.update(changes)
  return config.lock()


@pytest.fixture(scope="module")
def debug_run(tmp_path_factory):
  """A run of the debug variant: (configuration, workdir, task, scores of the validations)."""
  workdir = tmp_path_factory.mktemp("debug")
  config = make_config("debug", steps=200, validate_every=50, log_every=50)
  entries, tasks = [], []
  real_write, real_kind = metrics.MetricWriter.write, heads.make_task

  def write(self, number, prefix, scalars):
    real_write(self, number, prefix, scalars)
    if prefix == "validation":
      entries.append(scalars)

  def make_task(config, workdir):
    tasks.append(real_kind(config, workdir))
    return tasks[-1]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(metrics.MetricWriter, "write", write)
    patch.setitem(loop.KINDS, "head", make_task)
    loop.train_and_evaluate(config, workdir)
  return config, workdir, tasks[0], entries


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
  """Workdirs of a run of four steps on the grid backbone, and of the same run killed before it saved the fourth."""
  straight = tmp_path_factory.mktemp("straight")
  killed = straight.with_name(f"{straight.name}_killed")
  tiny.train(make_config(data), straight, killed=killed, at=4)
  return straight, killed


@pytest.fixture(scope="module")
def straight(runs):
  return runs[0]


def saved_state(workdir, number):
  with ocp.PyTreeCheckpointer() as checkpointer:
    return checkpointer.restore(workdir / "checkpoints" / str(number) / "train_state")


def test_the_debug_variant_learns_what_holds_for_other_episodes(debug_run):
  config, _, task, scores = debug_run
  batches = list(task.validation_batches())
  assert len(batches) == 3 and all(len(batch["index"]) == config.batch_size for batch in batches)
  head = presets.preset("mobile_vla", feature_dim=96, state_dim=8, action_dim=7, gripper_dims=(-1,))
  mean = [
    float(losses.output_loss(head, HeadOutput(jnp.zeros((*b["actions_BWTA"].shape[:-1], 6)),
                                              jnp.zeros((*b["actions_BWTA"].shape[:-1], 1))), b)[0])
    for b in batches]
  assert 0.8 < np.mean(mean) < 1.3  # about the variance of normalized labels
  assert scores[-1]["loss"] < 0.85 * np.mean(mean) and scores[-1]["loss"] < 0.97 * scores[0]["loss"], scores
  assert scores[-1]["gripper_f1"] > 0.8 and scores[-1]["gripper_accuracy"] > 0.8
  assert {f"gripper_{name}" for name in heads.SCORES} <= set(scores[-1])


def test_the_exported_policy_answers_from_the_first_step(debug_run):
  config, workdir, _, scores = debug_run
  agent = Agent(directory.load(workdir / "policy"))
  assert (agent.policy.spec.execute_steps, agent.policy.spec.control_hz) == (1, debug_data.FPS)
  assert agent.policy.spec.image_size == (debug_data.PIXELS,) * 2 and agent.policy.robot.name == "plain"
  episode = open_dataset(workdir / "debug_data").read_episode(0)
  errors, grippers = [], []
  for frame in range(12):
    answer = agent.infer({
      "image": {name: episode.images[stored][frame] for name, stored in CAMERAS.items()},
      "state": episode.state[frame], "prompt": episode.prompts[frame]})["actions"]
    assert answer.shape == (5, 7) and np.isfinite(answer).all()
    errors.append(abs(answer[0, :6] - episode.actions[frame, :6]).mean())
    grippers.append(answer[0, 6] == episode.actions[frame, 6])
  spread = episode.actions[:12, :6].std()
  assert np.mean(errors) < spread and np.mean(grippers) > 0.7, (errors, spread)
  record = json.loads((workdir / "policy" / "record.json").read_text())
  assert record["config"]["name"] == config.name and record["validation"]["loss"] == min(s["loss"] for s in scores)
  assert record["episodes"] == {"train": [9], "validation": [3]}


def test_two_steps_and_two_more_equal_four(data, runs):
  straight, killed = runs
  assert not (killed / "policy").exists() and not (killed / "checkpoints" / "4").exists()
  loop.train_and_evaluate(make_config(data), killed)
  expected, resumed = saved_state(straight, 4), saved_state(killed, 4)
  assert expected.keys() == resumed.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(resumed[name], value, err_msg=name)
  for a, b in zip(*(jax.tree.leaves(checkpoints.load_params(w / "checkpoints" / "4")) for w in runs)):
    np.testing.assert_array_equal(a, b)


def test_several_devices_and_microbatches_train_the_same(data, straight, tmp_path):
  code = ("import sys; sys.path[:0] = [sys.argv[1]]\n"
          "import test_heads as t, pathlib\n"
          "from pi0rag_jax.models.backbones import base\n"
          "base.BACKBONES['grid'] = t.Grid\n"
          "t.loop.train_and_evaluate(t.make_config(sys.argv[2], microbatches=2), pathlib.Path(sys.argv[3]))\n")
  flags_of_xla = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags_of_xla}
  done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(data), str(tmp_path)],
                        env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert "x 2" in json.loads((tmp_path / "policy" / "record.json").read_text())["devices"]
  trees = [checkpoints.load_params(workdir / "checkpoints" / "4") for workdir in (straight, tmp_path)]
  for a, b in zip(*(jax.tree.leaves(tree) for tree in trees)):
    np.testing.assert_allclose(a, b, atol=1e-5)
  scores = [json.loads((w / "checkpoints" / "4" / "metrics.json").read_text()) for w in (straight, tmp_path)]
  for name, value in scores[0].items():
    np.testing.assert_allclose(scores[1][name], value, rtol=1e-4, err_msg=name)


def test_a_batch_is_a_function_of_its_number_and_holds_what_the_episodes_do(data, straight):
  task = heads.make_task(make_config(data), straight)
  batch, again = task.train_batch(7), task.train_batch(7)
  for name, value in batch.items():
    np.testing.assert_array_equal(value, again[name])
  assert not np.array_equal(batch["features_BWD"], task.train_batch(8)["features_BWD"])
  # Every newest row is a frame of a training episode, with its own state, label and picture.
  dataset, stats = open_dataset(data), task.stats
  record = task.record()
  assert record["episodes"] == {"train": [9], "validation": [3]}
  found = 0
  for _, episode in dataset.iterate(images=True):
    state_FP = (episode.state - stats["state"].mean) / (stats["state"].std + 1e-6)
    front_FD = expected_features(episode.images["front"])
    for features_WD, actions_WTA, mask_WT in zip(batch["features_BWD"], batch["actions_BWTA"],
                                                 batch["action_mask_BWT"]):
      at = np.flatnonzero(abs(state_FP - features_WD[-1, -8:]).max(axis=-1) < 1e-5)
      if not at.size:
        continue
      found += 1
      (frame,) = at
      np.testing.assert_allclose(features_WD[-1, : front_FD.shape[1]], front_FD[frame], atol=1e-5)
      action = (episode.actions[frame] - stats["actions"].mean) / (stats["actions"].std + 1e-6)
      np.testing.assert_allclose(actions_WTA[-1, 0, :6], action[:6], atol=1e-4)
      assert actions_WTA[-1, 0, 6] == episode.actions[frame, 6]
      assert mask_WT[-1].sum() == min(5, len(episode) - frame)
  assert found == 32


def test_the_cache_is_used_and_another_one_refused(data, tmp_path, monkeypatch):
  mine = shutil.copytree(data, tmp_path / "mine")
  config = make_config(mine, feature_cache=str(tmp_path / "features"))
  workdir = tmp_path / "run"
  workdir.mkdir()
  first = heads.make_task(config, workdir).train_batch(0)
  monkeypatch.setattr(heads.head_data.FeatureExtractor, "encode", lambda *_: pytest.fail("features were computed"))
  np.testing.assert_array_equal(heads.make_task(config, workdir).train_batch(0)["features_BWD"], first["features_BWD"])
  monkeypatch.undo()
  monkeypatch.setitem(backbones.BACKBONES, "grid", Grid)
  os.utime(mine / "episode_000003.h5", ns=(1, 1))
  with pytest.raises(Pi0RagError, match=r"began with other features of .*mine: the data set, the backbone's weights"):
    heads.make_task(config, workdir)


def test_the_policy_knows_its_backbone(straight, tmp_path):
  policy = shutil.copytree(straight / "policy", tmp_path / "policy")
  assert directory.load(policy).units.config.chunk == 5
  shutil.rmtree(policy / "backbone")
  with pytest.raises(Pi0RagError, match=r"the backbone's weights are missing: no .*backbone"):
    directory.load(policy)
  checkpoints.save_params(policy / "backbone", {"gain": np.float32(3.0)})
  with pytest.raises(Pi0RagError, match="was trained with other weights of the backbone"):
    directory.load(policy)


def test_the_policy_knows_what_drew_its_pictures(data, tmp_path):
  """From a LeRobot data set as from our own: a world refuses a policy of other pictures."""
  folder = tmp_path / "lerobot"
  export.write(open_dataset(data), export.Export(folder, pictures="images"))
  info = folder / "meta" / "info.json"
  info.write_text(json.dumps(json.loads(info.read_text()) | {"renderer": "raycast"}))
  names = {name: f"observation.images.{stored}" for name, stored in make_config(data).fields.cameras.items()}
  loop.train_and_evaluate(make_config(folder, fields={"cameras": names}), tmp_path / "run")
  policy = tmp_path / "run" / "policy"
  assert directory.describe(str(policy))[0].renderer == "raycast"
  answer = commands.main(["predict", f"--policy={policy}", f"--data={folder}", f"--out={tmp_path / 'predicted'}"])
  assert answer == 0, "the columns are those of its training"


def test_data_of_another_robot_are_refused(data, tmp_path):
  with pytest.raises(Pi0RagError, match="state has 8 numbers, the robot has 10"):
    heads.make_task(make_config(data, robot="panda"), tmp_path)


@pytest.mark.parametrize(("changes", "message"), [
  ({"head": {"preset": "", "name": "lstmm"}}, r"unknown head 'lstmm'\. Did you mean 'lstm'"),
  ({"head": {"name": "mlp"}}, r"name 'mlp' and preset 'mobile_vla': give one of them"),
  ({"head": {"preset": "mobile_vlb"}}, "unknown head preset 'mobile_vlb'"),
  ({"head": {"feature_dim": 7}}, r"config.head.feature_dim: the data and the backbone decide it"),
  ({"head": {"hiden": 7}}, r"unknown field of the head 'lstm' 'hiden'"),
  ({"backbone": {"name": "lite"}}, r"unknown backbone 'lite'"),
  ({"backbone": {"image_keys": ("top",)}}, r"reads the camera 'top', fields.cameras names base_0_rgb, left_wrist"),
  ({"backbone": {"checkpoint": "/none"}}, r"/none"),
  ({"fields": {"cameras": {"base_0_rgb": "top"}}}, r"unknown camera 'top'.*front, wrist"),
  ({"fields": {"state": "joints"}}, r"unknown field for the state 'joints'.*actions, state"),
  ({"fields": {"sate": "joints"}}, r"fields: unknown sate; allowed: actions"),
  ({"data": "/none"}, "no data set at '/none'"),
])
def test_mistakes_are_named(data, tmp_path, changes, message):
  with pytest.raises(Pi0RagError, match=message):
    loop.train_and_evaluate(make_config(**({"data": data} | changes)), tmp_path)


def test_a_preset_for_other_actions_asks_which_are_the_grippers(data, tmp_path):
  config = make_config(data).copy_and_resolve_references()
  with config.unlocked():
    del config.head["gripper_dims"]
  with pytest.raises(Pi0RagError, match=r"has 3 actions, the data 7: config.head.gripper_dims must say"):
    heads.make_task(config, tmp_path)


@pytest.mark.parametrize(("name", "sizes"), [
  ("mlp", {"hidden_dims": (16,)}), ("discrete", {"hidden_dims": (16,), "bin_range": (-3.0, 3.0)}),
  ("transformer", {"width": 16, "num_heads": 2, "layers": 1})])
def test_every_head_takes_the_batches(data, straight, tmp_path, name, sizes):
  config = make_config(data, feature_cache=str(straight / "features")).copy_and_resolve_references()
  with config.unlocked():
    config.head = ConfigDict({"name": name, "window": 3, "gripper_dims": (-1,), "dropout": 0.1} | sizes)
  task = heads.make_task(config, tmp_path)
  differentiate = functools.partial(step.gradients, task.loss, microbatches=2)
  grads, found = jax.eval_shape(differentiate, task.trainable, {}, task.train_batch(0), jax.random.key(0))
  assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, task.trainable) and found["loss"].shape == ()


def test_scores_of_the_gripper_are_of_all_batches_together():
  counts = [gripper_metrics.GripperCounts(*map(jnp.float32, numbers)) for numbers in ((1, 3, 0, 0), (9, 0, 5, 1))]
  entries = [{"f1": heads.GripperScore(each, "f1"), "loss": jnp.float32(i)} for i, each in enumerate(counts)]
  assert metrics.mean_of(entries) == {"f1": pytest.approx(20 / 24), "loss": 0.5}
  assert metrics.mean_of(entries[:1])["f1"] == pytest.approx(2 / 5)


def test_paligemma_is_read_from_a_checkpoint_with_the_cameras_of_the_robot(tmp_path):
  config: Any = mobile_vla_lstm.get_config().copy_and_resolve_references()
  size = {"width": 8, "depth": 1, "mlp_dim": 8, "num_heads": 1, "num_kv_heads": 1, "head_dim": 8}
  with config.unlocked():
    config.backbone.model = {
      "action_dim": 8, "action_horizon": 4, "max_token_len": 8, "vocab_size": 64, "image_size": (32, 32),
      "dtype": "float32", "paligemma": size, "expert": size,
      "siglip": {"width": 8, "depth": 1, "mlp_dim": 8, "num_heads": 1, "patch_size": 16}}
    config.backbone.checkpoint = str(tmp_path / "checkpoint")
  model, _ = backbone.read_model("pi05_aloha", config.backbone.model.to_dict(), tuple(CAMERAS))
  assert model.image_keys == tuple(CAMERAS) and getattr(model, "pi05", False)
  made = backbones.backbone("paligemma", config=model)
  shapes = jax.eval_shape(made.init, jax.random.key(0))
  checkpoints.save_params(tmp_path / "checkpoint", jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes))
  read, params = head_backbone.make_backbone(config, tmp_path)
  assert (read, read.hidden_size) == (made, 8) and not (tmp_path / "backbone").exists()
  assert all((leaf == 1).all() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("module", [mobile_vla_lstm, robovlms_lstm])
def test_the_configurations_have_their_variants(module):
  full, light, debug = (module.get_config(variant) for variant in ("", "light", "debug"))
  assert (full.backbone.name, light.backbone.name, debug.backbone.name) == ("paligemma", "light", "light")
  assert set(full) == set(debug) and full.is_locked and debug.data == ({"path": "debug"},)
  with pytest.raises(Pi0RagError, match=r"unknown variant of the configuration 'debig'. Did you mean 'debug'"):
    module.get_config("debig")


def test_the_flag_takes_a_variant():
  values, argv = flags.FlagValues(), ["program", "--config=configs/mobile_vla_lstm.py:debug", "--config.head.hidden=32"]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "argv", argv)  # where config_flags looks for overrides
    patch.setattr(flags, "FLAGS", values)
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(argv)
  assert values.config.data[0]["path"] == "debug" and values.config.head.hidden == 32


def test_a_selection_reads_the_features_of_the_whole_data_set(straight, data, tmp_path, monkeypatch):
  """The same rows as with features of its own, and nothing is computed."""
  kept_J = np.arange(open_dataset(data).num_episodes) % 2 == 1
  file = tmp_path / "selection.json"
  selection.write_json(file, [selection.Selection(str(data), kept_J * 1.0, kept_J, 0.5, "fixed")])
  config = make_config(data).unlock()
  config.data = ({"path": str(data), "selection": str(file)},)
  own = heads.make_task(config.lock(), tmp_path / "own").train_batch(0)
  config.unlock().feature_cache = str(straight / "features")
  monkeypatch.setattr(feature_cache, "build", lambda *_, **__: pytest.fail("computed again"))
  shared = heads.make_task(config.lock(), tmp_path / "shared").train_batch(0)
  np.testing.assert_array_equal(shared["features_BWD"], own["features_BWD"])


def test_every_checkpoint_becomes_a_policy(straight, tmp_path):
  target = tmp_path / "policies" / "0000004"
  policies.export_checkpoint(straight / "checkpoints" / "4", straight / "policy", target)
  assert json.loads((target / "record.json").read_text()) == {"step": 4}
  kept, final = (checkpoints.load_params(each) for each in (target, straight / "policy"))
  np.testing.assert_array_equal(jax.tree.leaves(kept)[0],
                                jax.tree.leaves(checkpoints.load_params(straight / "checkpoints" / "4"))[0])
  assert jax.tree.structure(kept) == jax.tree.structure(final)
  extractor = embeddings.policy_extractor(target)
  assert extractor.backbone.hidden_size == directory.load(target).extractor.backbone.hidden_size
