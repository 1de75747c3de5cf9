"""The 31 named configurations, against `config_registry.json`: every field as openpi itself listed it.

The registry writes openpi's own classes; the functions here say which of our fields stands for which of theirs.
"""

import dataclasses
import json
import pathlib

import optax
import pytest

from configs import openpi_finetune
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import adapters, registry
from pi0rag_jax.models.pi0_config import Pi0Config, Pi0FastConfig
from pi0rag_jax.openpi.config import DataConfig, ModelConfig
from pi0rag_jax.openpi.named_configs import ALOHA_DELTA, CONFIGS, DROID_DELTA, LIBERO_DELTA, get_config
from train import named, optimizer

REGISTRY = json.loads((pathlib.Path(__file__).parent / "config_registry.json").read_text())
# Of openpi's own launcher, loader and PyTorch port, and what is the same in (nearly) all: `train.launch` has its own.
NOT_OURS = {
  "seed", "log_interval", "save_interval", "keep_period", "optimizer",
  "_type", "project_name", "exp_name", "pytorch_weight_path", "pytorch_training_precision", "assets_base_dir",
  "checkpoint_base_dir", "num_workers", "overwrite", "resume", "wandb_enabled", "fsdp_devices",
}
TOKENIZERS = {None: "fast", "<class 'openpi.models.tokenizer.FASTTokenizer'>": "fast",
              "<class 'openpi.models.tokenizer.BinningTokenizer'>": "binning",
              "<class 'openpi.models.tokenizer.FSQTokenizer'>": "fsq"}
FROZEN_UNDER_LORA = ("All(PathRegex(pattern=re.compile('.*llm.*'), sep='/'), "
                     "Not(PathRegex(pattern=re.compile('.*lora.*'), sep='/')))")
# Set by code of openpi, which the registry shows as a function or not at all. Source: FACTS.md, section 10.
INFERRED_DELTAS = {"paligemma_binning_droid_jointpos": DROID_DELTA}
REPACKED = {
  "LeRobotLiberoDataConfig": {"observation/image": "image", "observation/wrist_image": "wrist_image",
                              "observation/state": "state", "actions": "actions", "prompt": "prompt"},
  "RLDSDroidDataConfig": {"observation/exterior_image_1_left": "observation/image",
                          "observation/wrist_image_left": "observation/wrist_image",
                          "observation/joint_position": "observation/joint_position",
                          "observation/gripper_position": "observation/gripper_position",
                          "actions": "actions", "prompt": "prompt"},
  "LeRobotDROIDDataConfig": {"observation/exterior_image_1_left": "exterior_image_1_left",
                             "observation/exterior_image_2_left": "exterior_image_2_left",
                             "observation/wrist_image_left": "wrist_image_left",
                             "observation/joint_position": "joint_position",
                             "observation/gripper_position": "gripper_position",
                             "actions": "actions", "prompt": "prompt"},
}
ROBOTS = {"LeRobotAlohaDataConfig": "aloha", "LeRobotLiberoDataConfig": "libero", "RLDSDroidDataConfig": "droid",
          "LeRobotDROIDDataConfig": "droid", "SimpleDataConfig": "droid", "FakeDataConfig": "fake"}


def expected_model(listed: dict) -> ModelConfig:
  """Returns our model of openpi's, every field of which is looked at."""
  listed = dict(listed)
  kind = listed.pop("_type")
  shared = {key: listed.pop(key) for key in ("action_dim", "action_horizon", "max_token_len", "dtype",
                                             "paligemma_variant")}
  if kind == "Pi0FASTConfig":
    kwargs = listed.pop("fast_model_tokenizer_kwargs") or {}
    model = ModelConfig(family="pi0_fast", **shared, action_tokenizer=TOKENIZERS[listed.pop("fast_model_tokenizer")],
                        action_tokenizer_path=next(iter(kwargs.values()), None))
  else:
    model = ModelConfig(family="pi05" if listed.pop("pi05") else "pi0", **shared,
                        action_expert_variant=listed.pop("action_expert_variant"),
                        discrete_state_input=listed.pop("discrete_state_input"))
  assert listed.keys() <= {"pytorch_compile_mode"}
  return model


def expected_delta(name: str, listed: dict):
  """Returns the mask of relative actions."""
  if listed.get("use_delta_joint_actions"):
    return ALOHA_DELTA
  if listed.get("extra_delta_transform"):
    return LIBERO_DELTA
  if listed.get("action_space") == "DroidActionSpace.JOINT_POSITION":
    return DROID_DELTA
  return INFERRED_DELTAS.get(name)


def expected_data(name: str, listed: dict) -> DataConfig:
  """Returns our data configuration of openpi's."""
  kind, base = listed["_type"], listed.get("base_config") or {}
  steps = listed.get("repack_transforms", {}).get("inputs", [])
  fields = {
    "robot": ROBOTS[kind], "repo_id": None if listed["repo_id"] == "MISSING" else listed["repo_id"],
    "asset_id": listed["assets"]["asset_id"],
    "repack": steps[0]["structure"] if steps else REPACKED.get(kind),
    "default_prompt": listed.get("default_prompt"), "delta_mask": expected_delta(name, listed),
    "adapt_to_pi": listed.get("adapt_to_pi", True), "prompt_from_task": base.get("prompt_from_task", False),
    "action_sequence_keys": tuple(listed.get("action_sequence_keys", base.get("action_sequence_keys", ["actions"]))),
    "action_space": "joint_position" if listed.get("action_space") == "DroidActionSpace.JOINT_POSITION" else None,
  }
  assert {f.name for f in dataclasses.fields(DataConfig)} == fields.keys()
  return DataConfig(**fields)


def test_all_names_are_there():
  assert len(REGISTRY) == 31 and list(CONFIGS) == list(REGISTRY) and set(CONFIGS) == set(REGISTRY)


@pytest.mark.parametrize("name", REGISTRY)
def test_configuration_agrees_with_openpis(name):
  listed, config = REGISTRY[name], get_config(name)
  assert config.name == listed["name"] == name
  # openpi's registry says nothing of cameras.
  assert dataclasses.replace(config.model, image_keys=None) == expected_model(listed["model"])
  assert config.data == expected_data(name, listed["data"])
  assert config.weights == listed["weight_loader"].get("params_path")
  assert dataclasses.asdict(config.lr_schedule) | {"_type": "CosineDecaySchedule"} == listed["lr_schedule"]
  has_lora = any(map(adapters.has_adapters, config.model.build().experts))
  assert listed["freeze_filter"] == (FROZEN_UNDER_LORA if has_lora else "Nothing()")
  same = ("ema_decay", "batch_size", "num_train_steps", "policy_metadata")
  assert {key: getattr(config, key) for key in same} == {key: listed[key] for key in same}
  compared = {"name", "model", "data", "weight_loader", "lr_schedule", "freeze_filter", *same}
  assert listed.keys() - compared == NOT_OURS


@pytest.mark.parametrize("name", [name for name in REGISTRY if CONFIGS[name].weights])
def test_training_does_what_the_configuration_says(name):
  """With the recipe that is the same in all of openpi's, as `train.launch` has it."""
  listed = REGISTRY[name]
  config = named.filled(openpi_finetune.base(name, name))
  schedule, adam = listed["lr_schedule"], listed["optimizer"]
  assert config.steps == listed["num_train_steps"] and config.batch_size == listed["batch_size"]
  assert config.ema_decay == (listed["ema_decay"] or 0) and config.seed == listed["seed"]
  assert config.log_every == listed["log_interval"] and config.warmup_steps == schedule["warmup_steps"]
  ours, theirs = optimizer.make_schedule(config), optax.warmup_cosine_decay_schedule(
    schedule["peak_lr"] / (schedule["warmup_steps"] + 1), schedule["peak_lr"], schedule["warmup_steps"],
    schedule["decay_steps"], schedule["decay_lr"])
  assert [float(ours(step)) for step in (0, 500, 20_000)] == [float(theirs(step)) for step in (0, 500, 20_000)]
  assert (config.weight_decay, config.clip_norm) == (adam["weight_decay"], adam["clip_gradient_norm"])
  assert (adam["b1"], adam["b2"], adam["eps"]) == (optimizer.ADAM_B1, optimizer.ADAM_B2, optimizer.ADAM_EPS)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_model_can_be_built(name):
  config = get_config(name)
  model = config.model.build()
  assert isinstance(model, Pi0FastConfig if config.model.family == "pi0_fast" else Pi0Config)
  assert (model.action_dim, model.action_horizon) == (config.model.action_dim, config.model.action_horizon)
  assert (model.paligemma.lora_attn is not None) == ("lora" in config.model.paligemma_variant)
  assert model.paligemma == registry.gemma(config.model.paligemma_variant)


def test_a_wrong_name_suggests_the_nearest():
  with pytest.raises(Pi0RagError, match=r"unknown configuration 'pi05_libreo'. Did you mean 'pi05_libero'.*pi0_aloha"):
    get_config("pi05_libreo")


@pytest.mark.parametrize(("fields", "message"), [
  ({"family": "pi06"}, "unknown model family 'pi06'"), ({"action_tokenizer": "fsk"}, "Did you mean 'fsq'")])
def test_wrong_fields_name_the_allowed_ones(fields, message):
  with pytest.raises(Pi0RagError, match=message):
    ModelConfig(**fields)


def test_released_checkpoints_are_those_of_the_facts():
  released = {name: config.checkpoint for name, config in CONFIGS.items() if config.checkpoint}
  root = "gs://openpi-assets/checkpoints/"
  assert released["pi05_droid"] == f"{root}pi05_droid" and released["pi0_aloha"] == f"{root}pi0_base"
  assert sum(url.startswith(f"{root}roboarena/") for url in released.values()) == 5
  assert sum(url.startswith(f"{root}polaris/") for url in released.values()) == 4
