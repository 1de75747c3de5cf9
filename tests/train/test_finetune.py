"""Fine-tuning of openpi's models: it learns, resumes exactly, leaves the base alone, and serves what it made."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from pi0rag_jax.policy.openpi_policy import create_policy

from configs import pi0_aloha_sim_lora, pi0_full_fsdp, pi0_libero_lora, pi05_droid_lora
from pi0rag_jax.data import columns
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.pi0_config import Pi0Config
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.robots.tokenizer import SentencePieceTokenizer
from train import debug_data, finetune, loop
from train.checkpoint import CheckpointStore


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return debug_data.make(tmp_path_factory.mktemp("robot") / "data")


def make_config(data_dir, **changes) -> ConfigDict:
  """Returns the debug configuration of adapters on data that is there already, with few steps."""
  config = pi0_libero_lora.get_config("debug")
  with config.unlocked():
    config.data = ({"path": str(data_dir)},)
    config.threads = 1
    for name, value in changes.items():
      config[name] = value
  return config


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
  """A run of adapters to its end."""
  workdir = tmp_path_factory.mktemp("trained")
  loop.train_and_evaluate(make_config(data_dir), workdir)
  return workdir


def _scores(workdir) -> dict[int, float]:
  store = CheckpointStore(workdir, asset_id="-")
  return {step: store.metrics(step)["loss"] for step in store.steps()}


def test_adapters_lower_the_validation_loss(data_dir, trained, tmp_path):
  loop.train_and_evaluate(make_config(data_dir, steps=2, validate_every=2, learning_rate=1e-9), tmp_path)
  before, after = _scores(tmp_path)[2], min(_scores(trained).values())
  # 120 held-out frames with the same noise and times each time.
  assert after < 0.75 * before, (before, after)


def test_the_base_stays_and_the_policy_is_the_merged_model(data_dir, trained):
  record = json.loads((trained / "policy" / "record.json").read_text())
  folder = trained / "checkpoints" / str(record["step"])
  config = make_config(data_dir)
  named = finetune.adjusted(config, finetune.read_config(config.openpi))
  model = finetune.read_model(config, named)
  _, frozen = finetune.initial_params(config, named, model)
  saved = checkpoints.load_params(folder)
  checkpoints.check_template(saved, jax.eval_shape(lambda: saved), source="checkpoint")
  weight = ("PaliGemma", "llm", "layers", "attn", "q_einsum", "w")
  get = lambda tree: np.asarray(_at(tree, weight), np.float32)  # noqa: E731
  np.testing.assert_array_equal(get(saved), get(frozen))
  merged = checkpoints.load_params(trained / "policy")
  assert np.abs(get(merged) - get(saved)).max() > 1e-4
  assert not any("lora" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(merged))


def _at(tree, path):
  for key in path:
    tree = tree[key]
  return tree


def test_what_was_trained_is_served(trained):
  record = json.loads((trained / "policy" / "record.json").read_text())
  policy = create_policy(
    record["openpi"], trained / "policy", model=Pi0Config.from_dict(record["model"]), dtype=None,
    text_tokenizer=SentencePieceTokenizer(trained / "policy" / "tokenizer.model"))
  image = np.zeros((32, 32, 3), np.uint8)
  found = policy.infer({"observation/image": image, "observation/wrist_image": image,
                        "observation/state": np.zeros(8), "prompt": "hold the tool low"})
  assert found["actions"].shape == (4, 7) and np.isfinite(found["actions"]).all()


def test_two_steps_and_two_more_equal_four(data_dir, tmp_path, monkeypatch):
  config = make_config(data_dir, steps=4, validate_every=2, log_every=1, augment=True)
  loop.train_and_evaluate(config, tmp_path / "straight")
  real = loop.log_training

  def stop_after_two(writer, clock, done, pending, *rest):
    if done == 3:
      raise KeyboardInterrupt
    return real(writer, clock, done, pending, *rest)

  # Reading from a cache changes nothing either.
  with config.unlocked():
    config.cache = str(tmp_path / "cache")
  monkeypatch.setattr(loop, "log_training", stop_after_two)
  with pytest.raises(KeyboardInterrupt):
    loop.train_and_evaluate(config, tmp_path / "stopped")
  monkeypatch.setattr(loop, "log_training", real)
  loop.train_and_evaluate(config, tmp_path / "stopped")
  straight, stopped = (
    checkpoints.load_params(tmp_path / name / "checkpoints" / "4") for name in ("straight", "stopped"))
  jax.tree.map(np.testing.assert_array_equal, straight, stopped)


def test_fresh_adapters_change_nothing_unless_asked_to(data_dir):
  config = make_config(data_dir)
  named = finetune.adjusted(config, finetune.read_config(config.openpi))
  model = finetune.read_model(config, named)
  for identity in (True, False):
    with config.unlocked():
      config.lora_identity = identity
    trainable, _ = finetune.initial_params(config, named, model)
    factor = np.asarray(_at(trainable, ("PaliGemma", "llm", "layers", "attn", "q_einsum", "lora_b")))
    assert (np.abs(factor).max() == 0) == identity


@pytest.mark.parametrize(("module", "trainable"), [
  (pi0_libero_lora, ("lora", "PaliGemma/img")), (pi05_droid_lora, ("lora", "PaliGemma/img")),
  (pi0_aloha_sim_lora, ("lora", "PaliGemma/img")), (pi0_full_fsdp, None)])
def test_the_released_sizes_and_what_of_them_trains(module, trainable):
  config = module.get_config()
  named = finetune.adjusted(config, finetune.read_config(config.openpi))
  model = finetune.read_model(config, named)
  assert (model.paligemma.width, model.image_size, model.remat) == (2048, (224, 224), "full")
  paths = finetune.trainable_paths(config, model)
  if trainable is None:
    assert paths("PaliGemma/llm/layers/attn/q_einsum/w") and paths("PaliGemma/img/head/kernel")
    return
  assert model.paligemma.lora_attn.rank == 16 and model.expert.lora_ffn.rank == 32
  assert paths("PaliGemma/llm/layers/attn/q_einsum/lora_a") and paths("action_in_proj/kernel")
  assert not paths("PaliGemma/llm/layers/attn/q_einsum/w") and not paths("PaliGemma/img/head/kernel")


def test_parts_of_columns_become_the_robots_entries(data_dir):
  repack = {"arm": {"joints": "state[0:3]"}, "hand": "state[7:8]", "picture": "front", "actions": "actions"}
  dataset, to_robot = columns.open_columns(data_dir, repack, action_columns=("actions",))
  sample = {"state": np.arange(8.0), "actions": np.zeros((2, 7)), "prompt": "go",
            "image": {"front": np.zeros((32, 16, 3), np.uint8)}}
  found = to_robot(sample)
  np.testing.assert_array_equal(found["arm"]["joints"], [0, 1, 2])
  np.testing.assert_array_equal(found["hand"], [7])
  assert found["picture"].shape == (3, 32, 16) and found["prompt"] == "go" and found["actions"].shape == (2, 7)
  assert dataset.cameras == ("front",)


@pytest.mark.parametrize(("changes", "message"), [
  ({"data": ()}, r"config.data is empty: give data sets"),
  ({"data": ({"path": "/none"},)}, r"no data set at '/none'"),
  ({"openpi": "pi0_libro"}, r"pi0_libro.*pi0_libero"),
  ({"openpi": "configs/none.py"}, r"there is no such file"),
  ({"openpi": "configs/panda_small.py"}, r"has no get_config\(\) that returns a TrainConfig"),
  ({"columns": ConfigDict({"observation/image": "fromt", "observation/state": "state", "actions": "actions"})},
   r"column 'fromt', which is no camera of .* \(front, wrist\)"),
  ({"microbatches": 3}, r"batch_size 16 must be a multiple of the 1 devices times 3 microbatches"),
  ({"init_checkpoint": "/none"}, r"no checkpoint directory at /none"),
])
def test_mistakes_are_named(data_dir, tmp_path, changes, message):
  with pytest.raises(Pi0RagError, match=message):
    loop.train_and_evaluate(make_config(data_dir, **changes), tmp_path)
