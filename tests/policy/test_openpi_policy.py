"""Policies by name: what openpi's do is checked in tests/eval/test_policy_parity.py, their own behaviour here."""

import dataclasses
import functools
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import my_robot
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import registry
from pi0rag_jax.models.embedding import embed_observation
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.pi0_config import OPENPI_CAMERAS, Pi0Config
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.openpi.named_configs import CONFIGS, get_config
from pi0rag_jax.policy import compiling, openpi_policy
from pi0rag_jax.policy.openpi_policy import OpenpiPolicy, create_policy
from pi0rag_jax.robots.action_tokens import BinningCodec
from pi0rag_jax.robots.normalize import NormStats
from pi0rag_jax.robots.transforms import Repack, TransformGroup, compose

# Sizes that run in a moment, for the two kinds of sampling.
FLOW = dataclasses.replace(registry.model("dummy"), image_keys=OPENPI_CAMERAS, action_dim=16, max_token_len=96,
                           vocab_size=1024, pi05=True)
TOKENS = dataclasses.replace(registry.model("dummy_fast"), action_dim=8, max_token_len=96, vocab_size=1024)


@functools.cache
def fresh(model):
  """Random parameters, drawn by numpy: the initializers are slow to compile."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(functools.partial(registry.init, model), jax.random.key(0))
  return jax.tree.map(lambda x: rng.normal(scale=0.1, size=x.shape).astype(x.dtype), shapes)


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
  observation = my_robot.example_observation()
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
  ("pi05_droid", {"sample_kwargs": {"num_steps": 0}}, "num_steps is 0; allowed: whole numbers from 1"),
  ("pi05_aloha", {}, "no norm stats for asset 'trossen' in .*; present: droid, my_robot"),
  ("pi0_droid", {}, "the configuration is of the family pi0, the model of pi05"),
  ("pi05_droid", {"norm_stats": {"state": stats(8)}}, "the statistics lack those of actions; there are state"),
  # Of LIBERO, whose state is as long as DROID's.
  ("pi05_droid", {"norm_stats": {"state": stats(8), "actions": stats(7)}}, "robot 'droid' has 8 dims, .* have 7: they"),
  ("pi05_droid", {"model": dataclasses.replace(FLOW, action_dim=20)},
   r"(?s)3 arrays differ; the first:.*action_in_proj/kernel is \(16, 64\), the model wants \(20, 64\)"),
  ("pi0_fast_droid", {"model": TOKENS, "action_codec": BinningCodec()}, r"of pi0 or pi0\.5, the model is a pi0-FAST"),
])
def test_mistakes_say_what_is_allowed(flow_checkpoint, text_tokenizer, config, options, message):
  with pytest.raises(Pi0RagError, match=message):
    create_policy(config, flow_checkpoint, **{"model": FLOW, "text_tokenizer": text_tokenizer, **options})


def test_a_configuration_without_a_release_needs_a_directory(text_tokenizer):
  with pytest.raises(Pi0RagError, match=r"no checkpoint of 'pi0_libero' is released: give the directory"):
    create_policy("pi0_libero", text_tokenizer=text_tokenizer)


@pytest.mark.parametrize(("lost", "message"), [
  ("", r"no checkpoint directory at .*copy"),
  ("assets", r"copy has no assets/, .* expected .*assets/droid/norm_stats\.json"),
  ("params", r"copy is no openpi checkpoint: expected params/ with an Orbax _METADATA file, .*, found assets"),
])
def test_what_is_missing_of_a_checkpoint_is_named(flow_checkpoint, text_tokenizer, tmp_path, lost, message):
  copy = shutil.copytree(flow_checkpoint, tmp_path / "copy")
  shutil.rmtree(copy / lost)
  with pytest.raises(Pi0RagError, match=message):
    create_policy("pi05_droid", copy, model=FLOW, text_tokenizer=text_tokenizer)


@pytest.mark.parametrize(("changes", "message"), [
  ({"observation/joint_position": np.zeros(8)}, "observation/joint_position has 8 numbers, the robot has 7"),
  ({"observation/joint_position": np.full(7, np.inf)}, "observation/joint_position has NaN or infinity"),
  ({"observation/wrist_image_left": np.full((6, 8, 3), 255.0)}, r"wrist_image_left: float image has values .* allowed"),
  ({"observation/wrist_image_left": np.zeros((6, 8, 4), np.uint8)}, r"has shape \(6, 8, 4\); allowed: \[H, W, 3\]"),
  ({"prompt": ["stack"]}, "prompt is list; allowed: one string"),
])
def test_bad_observations_say_what_is_allowed(droid_policy, changes, message):
  with pytest.raises(Pi0RagError, match=message):
    droid_policy.infer(droid_observation(**changes))


def test_an_observation_is_a_dictionary_and_noise_is_finite(droid_policy):
  with pytest.raises(Pi0RagError, match="the observation is list; allowed: a robot's dictionary"):
    droid_policy.infer([droid_observation()])
  for noise in (np.full((4, 16), np.nan), np.full((4, 16), "a")):
    with pytest.raises(Pi0RagError, match=r"NaN or infinity, or no numbers; allowed: finite"):
      droid_policy.infer(droid_observation(), noise=noise)


def test_a_state_far_out_and_a_long_prompt_are_warned_of(flow_checkpoint, text_tokenizer):
  policy = create_policy("pi05_droid", flow_checkpoint, model=FLOW, text_tokenizer=text_tokenizer)
  far = droid_observation(**{"observation/gripper_position": 255.0})
  with pytest.warns(UserWarning, match=r"dim 7 is 255, the statistics have -2 to 2 \(q01, q99\)\)"):
    policy.model_input(far)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    policy.model_input(far)
  with pytest.warns(UserWarning, match=r"the prompt has \d+ tokens, the model takes 96"):
    found = policy.model_input(droid_observation(prompt="stack the cups " * 40))
  assert found["tokenized_prompt"].shape == (96,) and found["tokenized_prompt_mask"].all()


def test_statistics_may_be_given_in_both_forms(flow_checkpoint, text_tokenizer):
  plain = {"state": stats(8), "actions": stats(8)}
  make = lambda given: create_policy("pi05_droid", flow_checkpoint, model=FLOW, text_tokenizer=text_tokenizer,  # noqa: E731
                                     norm_stats=given).model_input(droid_observation())["state"]
  np.testing.assert_array_equal(make(plain), make({key: NormStats(**value) for key, value in plain.items()}))
  np.testing.assert_allclose(make({})[:7], droid_observation()["observation/joint_position"])


def test_statistics_without_quantiles_are_refused(tmp_path, text_tokenizer):
  z_scores = {"mean": np.zeros(8), "std": np.ones(8)}
  checkpoints.save_norm_stats(tmp_path, "droid", {"state": z_scores, "actions": z_scores})
  with pytest.raises(Pi0RagError, match=r"statistics for 'droid' in .*: those of state have no q01 and q99"):
    create_policy("pi05_droid", tmp_path, model=FLOW, text_tokenizer=text_tokenizer)


def libero_observation():
  image = np.zeros((8, 8, 3), np.uint8)
  return {"observation/state": np.zeros(8), "observation/image": image, "observation/wrist_image": image,
          "prompt": "go"}


def aloha_observation():
  return {"state": np.zeros(14), "images": {"cam_high": np.zeros((3, 8, 8), np.uint8)}, "prompt": "go"}


OBSERVATIONS = {"aloha": aloha_observation, "droid": droid_observation, "libero": libero_observation}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_configuration_feeds_the_cameras_of_its_model(config, text_tokenizer):
  model = config.model.build()
  group = openpi_policy.policy_transforms(config.data, config.model, model, {}, text_tokenizer=text_tokenizer,
                                          action_codec=BinningCodec())
  assert group.inputs and (group.outputs or config.data.robot == "fake")
  if config.data.robot != "fake":
    # pi0-FAST takes them in the order of their names.
    assert tuple(sorted(compose(group.inputs)(OBSERVATIONS[config.data.robot]())["image"])) == model.image_keys


def test_prefix_embeddings_of_pi0_fast_on_libero(text_tokenizer):
  config = get_config("pi0_fast_libero")
  model = dataclasses.replace(TOKENS, image_keys=config.model.build().image_keys)
  group = openpi_policy.policy_transforms(config.data, config.model, model, {}, text_tokenizer=text_tokenizer,
                                          action_codec=BinningCodec())
  inputs = compose(group.inputs)(libero_observation())
  obs = Observation.from_dict(jax.tree.map(lambda x: jnp.asarray(x)[None], inputs))
  found = embed_observation(registry.network(model), fresh(TOKENS), obs, layer="input", pool="camera")
  assert found.key_BE.shape == (1, 3 * model.paligemma.width) and found.mask_BS.shape == (1, model.prefix_tokens)


def test_no_request_waits_for_the_compiler(text_tokenizer):
  config, model = get_config("pi0_droid"), dataclasses.replace(FLOW, pi05=False, max_token_len=24, action_dim=8)
  group = openpi_policy.policy_transforms(config.data, config.model, model, {}, text_tokenizer=text_tokenizer)
  policy = OpenpiPolicy(model, fresh(model), group, sample_kwargs={"num_steps": 1})
  policy.compile(droid_observation(prompt="stack"))
  with compiling.counted() as at_a_request:
    policy.infer(droid_observation(prompt="wave"))
  with compiling.counted() as ahead:
    policy.compile(droid_observation(prompt="stack"), all_prompts=True)
  long = droid_observation(prompt=" and ".join(["stack the cups and the cubes"] * 2))
  with compiling.counted() as at_a_long_one:
    policy.infer(long)
  assert 16 < policy.model_input(long)["tokenized_prompt_mask"].sum() <= 24
  assert (at_a_request.needed, ahead.needed, at_a_long_one.needed) == (0, 1, 0)


def test_what_masks_hide_is_left_out():
  masks = {"base_0_rgb": np.True_, "left_wrist_0_rgb": np.False_, "right_wrist_0_rgb": np.True_}
  tokens, mask = np.arange(48), np.arange(48) < 17
  images = {name: np.full((2, 2, 3), i, np.uint8) for i, name in enumerate(masks)}
  given = {"image": images, "image_mask": masks, "tokenized_prompt": tokens, "tokenized_prompt_mask": mask}
  kept = openpi_policy.only_valid(given, tuple(masks))
  assert list(kept["image"]) == list(kept["image_mask"]) == ["base_0_rgb", "right_wrist_0_rgb"]
  assert len(kept["tokenized_prompt"]) == len(kept["tokenized_prompt_mask"]) == 32
  np.testing.assert_array_equal(kept["tokenized_prompt_mask"], np.arange(32) < 17)
  blind = openpi_policy.only_valid({**given, "image_mask": dict.fromkeys(masks, np.False_)}, tuple(masks))
  assert blind["image_mask"] == {"base_0_rgb": False}


def test_matrices_may_be_int8(flow_checkpoint, text_tokenizer):
  make = lambda **options: create_policy(  # noqa: E731
    "pi05_droid", flow_checkpoint, model=FLOW, text_tokenizer=text_tokenizer, **options)
  small, noise = make(weights="int8"), np.zeros((FLOW.action_horizon, FLOW.action_dim))
  actions_TA, exact_TA = (each.infer(droid_observation(), noise=noise)["actions"] for each in (small, make()))
  assert 0 < np.abs(actions_TA - exact_TA).max() < 0.05 * np.abs(exact_TA).max()
  count = lambda policy: sum(x.nbytes for x in jax.tree.leaves(policy.params))  # noqa: E731
  assert count(small) < count(make())
  with pytest.raises(Pi0RagError, match="storage of weights"):
    make(weights="int9")


@pytest.mark.parametrize(("dtype", "weights", "packed"), [
  ("bfloat16", None, False), ("bfloat16", "int8", True), ("float32", None, True)])
def test_a_cpu_converts_layer_by_layer(flow_checkpoint, text_tokenizer, dtype, weights, packed):
  if jax.default_backend() != "cpu":
    pytest.skip("other backends multiply bfloat16 as it is")
  policy = create_policy("pi05_droid", flow_checkpoint, model=FLOW, text_tokenizer=text_tokenizer, dtype=dtype,
                         weights=weights)
  assert isinstance(policy.model, Pi0Config) and policy.model.packed == packed
