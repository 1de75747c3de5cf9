"""Policies by name: what openpi's do is checked in tests/eval/test_policy_parity.py, their own behaviour here."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest

from configs import my_robot
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import registry
from pi0rag_jax.models.pi0_config import OPENPI_CAMERAS
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.openpi.config import TrainConfig
from pi0rag_jax.openpi.named_configs import CONFIGS, get_config
from pi0rag_jax.policy import openpi_policy
from pi0rag_jax.policy.action_tokens import BinningCodec
from pi0rag_jax.policy.openpi_policy import create_policy
from pi0rag_jax.policy.transforms import Repack, TransformGroup

# Sizes that run in a moment, for the two kinds of sampling.
FLOW = dataclasses.replace(registry.model("dummy"), image_keys=OPENPI_CAMERAS, action_dim=16, max_token_len=96,
                           vocab_size=1024, pi05=True)
TOKENS = dataclasses.replace(registry.model("dummy_fast"), action_dim=8, max_token_len=96, vocab_size=1024)


@functools.cache
def fresh(model):
  return jax.jit(functools.partial(registry.init, model))(jax.random.key(0))


def stats(dim):
  return {"mean": np.zeros(dim), "std": np.ones(dim), "q01": np.full(dim, -2.0), "q99": np.full(dim, 2.0)}


@pytest.fixture(scope="module")
def flow_checkpoint(tmp_path_factory):
  """A tiny pi0.5 with statistics of several robots."""
  directory = tmp_path_factory.mktemp("flow") / "checkpoint"
  robots = {"droid": (8, 8), "my_robot": (7, 7), "physical-intelligence/libero": (8, 7)}
  checkpoints.save_checkpoint(directory, fresh(FLOW), {
    name: {"state": stats(state), "actions": stats(actions)} for name, (state, actions) in robots.items()})
  return directory


@pytest.fixture(scope="module")
def droid_policy(flow_checkpoint, text_tokenizer):
  return create_policy("pi05_droid", flow_checkpoint, model=FLOW, text_tokenizer=text_tokenizer,
                       sample_kwargs={"num_steps": 2})


def droid_observation(**changes):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (60, 80, 3), np.uint8)
  return {"observation/exterior_image_1_left": image, "observation/wrist_image_left": image,
          "observation/joint_position": rng.normal(size=7), "observation/gripper_position": np.array([0.5]),
          "prompt": "stack the cups", **changes}


def test_actions_are_in_the_robots_form(droid_policy):
  observation = droid_observation()
  out = droid_policy.infer(observation)
  assert out["actions"].shape == (FLOW.action_horizon, 8) and out["actions"].dtype == np.float64
  assert out["policy_timing"]["infer_ms"] > 0 and out.keys() == {"actions", "policy_timing"}
  assert observation.keys() == droid_observation().keys()


def test_noise_decides_the_chunk(droid_policy):
  noise = np.random.default_rng(1).normal(size=(FLOW.action_horizon, FLOW.action_dim)).astype(np.float32)
  first = droid_policy.infer(droid_observation(), noise=noise)["actions"]
  np.testing.assert_array_equal(droid_policy.infer(droid_observation(), noise=noise[None])["actions"], first)
  assert np.abs(droid_policy.infer(droid_observation())["actions"] - first).max() > 1e-3
  with pytest.raises(Pi0RagError, match=r"noise has shape \(3, 16\); allowed: \(4, 16\)"):
    droid_policy.infer(droid_observation(), noise=noise[:3])


def test_seeds_repeat(flow_checkpoint, text_tokenizer):
  make = lambda seed: create_policy("pi05_droid", flow_checkpoint, model=FLOW, text_tokenizer=text_tokenizer,  # noqa: E731
                                    sample_kwargs={"num_steps": 2}, seed=seed)
  one, same, other = make(0), make(0), make(1)
  chunks = [one.infer(droid_observation())["actions"] for _ in range(2)]
  np.testing.assert_array_equal(same.infer(droid_observation())["actions"], chunks[0])
  assert np.abs(chunks[1] - chunks[0]).max() > 1e-3
  assert np.abs(other.infer(droid_observation())["actions"] - chunks[0]).max() > 1e-3


def test_joint_positions_are_relative_to_the_state(flow_checkpoint, text_tokenizer, droid_policy):
  relative = create_policy("pi05_droid_jointpos_polaris", flow_checkpoint, model=FLOW, text_tokenizer=text_tokenizer,
                           sample_kwargs={"num_steps": 2})
  noise = np.zeros((FLOW.action_horizon, FLOW.action_dim))
  difference = (relative.infer(droid_observation(), noise=noise)["actions"]
                - droid_policy.infer(droid_observation(), noise=noise)["actions"])
  # The state has been through float32.
  wanted = np.append(droid_observation()["observation/joint_position"], 0.0)
  np.testing.assert_allclose(difference, np.tile(wanted, (FLOW.action_horizon, 1)), atol=1e-5)


def test_default_prompts(flow_checkpoint, text_tokenizer):
  def make(config, **more):
    return create_policy(config, flow_checkpoint, model=FLOW, text_tokenizer=text_tokenizer, **more)

  silent = droid_observation()
  del silent["prompt"]
  with pytest.raises(Pi0RagError, match=r"no 'prompt' and the configuration no default_prompt"):
    make("pi05_droid").model_input(silent)
  config = get_config("pi05_droid")
  configured = dataclasses.replace(config, data=dataclasses.replace(config.data, default_prompt="wipe"))
  tokens = lambda policy: policy.model_input(silent)["tokenized_prompt"].tolist()  # noqa: E731
  assert tokens(make(configured)) == tokens(make("pi05_droid", default_prompt="wipe"))
  assert tokens(make(configured, default_prompt="stack")) == tokens(make("pi05_droid", default_prompt="stack"))


def test_repacked_observations(flow_checkpoint, text_tokenizer, droid_policy):
  keys = droid_observation().keys()
  repack = TransformGroup((Repack({key: f"mine/{key.split('/')[-1]}" for key in keys}),))
  policy = create_policy("pi05_droid", flow_checkpoint, model=FLOW, text_tokenizer=text_tokenizer, repack=repack)
  mine = {"mine": {key.split("/")[-1]: value for key, value in droid_observation().items()}}
  found, wanted = policy.model_input(mine), droid_policy.model_input(droid_observation())
  np.testing.assert_array_equal(found["tokenized_prompt"], wanted["tokenized_prompt"])
  np.testing.assert_array_equal(found["state"], wanted["state"])


def test_a_robot_of_ones_own(flow_checkpoint, text_tokenizer):
  policy = create_policy(my_robot.get_config(), flow_checkpoint, model=FLOW, text_tokenizer=text_tokenizer,
                         sample_kwargs={"num_steps": 2})
  image = np.zeros((48, 64, 3), np.uint8)
  observation = {"joints": np.ones(6), "gripper": 0.5, "front": image, "wrist": image, "prompt": "sort"}
  assert policy.infer(observation)["actions"].shape == (FLOW.action_horizon, 7)
  inputs = policy.model_input(observation)
  assert not inputs["image_mask"]["right_wrist_0_rgb"] and inputs["image"]["base_0_rgb"].shape == (64, 64, 3)
  with pytest.raises(Pi0RagError, match=r"joints has 5 numbers, the robot has 6"):
    policy.infer({**observation, "joints": np.ones(5)})


@pytest.mark.parametrize("name", ["paligemma_binning_droid", "paligemma_fast_droid", "paligemma_fast_specialist_droid",
                                  "paligemma_vq_droid", "paligemma_diffusion_droid"])
def test_roboarenas_policies_run(name, tmp_path, text_tokenizer):
  config = get_config(name)
  model = TOKENS if config.model.family == "pi0_fast" else dataclasses.replace(FLOW, pi05=False, action_dim=8)
  checkpoints.save_checkpoint(tmp_path / "c", fresh(model),
                              {"droid": {"state": stats(8), "actions": stats(8)}})
  options = {"max_decoding_steps": 4} if config.model.family == "pi0_fast" else {"num_steps": 1}
  policy = create_policy(config, tmp_path / "c", model=model, text_tokenizer=text_tokenizer,
                         action_codec=BinningCodec(), sample_kwargs=options)
  assert policy.infer(droid_observation())["actions"].shape == (model.action_horizon, 8)
  if config.model.family == "pi0_fast":
    with pytest.raises(Pi0RagError, match=r"pi0-FAST writes tokens and starts from no noise"):
      policy.infer(droid_observation(), noise=np.zeros((4, 8)))


def test_codecs_by_name(monkeypatch):
  asked = []
  monkeypatch.setattr(openpi_policy.action_tokens.FastCodec, "load", lambda path: asked.append(path))
  monkeypatch.setattr(openpi_policy.fsq.FsqCodec, "load", lambda path: asked.append(path))
  for name in ("paligemma_fast_droid", "paligemma_fast_specialist_droid", "paligemma_vq_droid"):
    openpi_policy.load_codec(get_config(name).model)
  assert asked == ["physical-intelligence/fast", "KarlP/fast_droid_specialist",
                   "gs://openpi-assets/tokenizers/droid_fsq_tokenizer"]
  assert isinstance(openpi_policy.load_codec(get_config("paligemma_binning_droid").model), BinningCodec)


@pytest.mark.parametrize(("config", "options", "message"), [
  ("pi05_drod", {}, "unknown configuration 'pi05_drod'. Did you mean 'pi05_droid'"),
  ("pi05_droid", {"sample_kwargs": {"steps": 3}}, "unknown sampling option 'steps'. Did you mean 'num_steps'"),
  ("pi0_aloha", {}, "no norm stats for asset 'trossen' in .*; present: droid, my_robot"),
])
def test_mistakes_say_what_is_allowed(flow_checkpoint, text_tokenizer, config, options, message):
  with pytest.raises(Pi0RagError, match=message):
    create_policy(config, flow_checkpoint, model=FLOW, text_tokenizer=text_tokenizer, **options)


def test_a_configuration_without_a_release_needs_a_directory(text_tokenizer):
  with pytest.raises(Pi0RagError, match=r"no checkpoint of 'pi0_libero' is released: give the directory"):
    create_policy("pi0_libero", text_tokenizer=text_tokenizer)


def test_a_missing_directory_is_named(text_tokenizer):
  with pytest.raises(Pi0RagError, match=str(pathlib.Path("/none"))):
    create_policy("pi05_droid", "/none", model=FLOW, text_tokenizer=text_tokenizer)


def test_statistics_without_quantiles_are_refused(tmp_path, text_tokenizer):
  z_scores = {"mean": np.zeros(8), "std": np.ones(8)}
  checkpoints.save_norm_stats(tmp_path, "droid", {"state": z_scores, "actions": z_scores})
  with pytest.raises(Pi0RagError, match=r"statistics of state for 'droid' in .* have no q01 and q99"):
    create_policy("pi05_droid", tmp_path, model=FLOW, text_tokenizer=text_tokenizer)


def test_every_configuration_has_transforms(text_tokenizer):
  for config in CONFIGS.values():
    assert isinstance(config, TrainConfig)
    group = openpi_policy.policy_transforms(config.data, config.model, config.model.build(), {},
                                            text_tokenizer=text_tokenizer, action_codec=BinningCodec())
    assert group.inputs and (group.outputs or config.data.robot == "fake")
