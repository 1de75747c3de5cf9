"""Policies by name: what openpi's do is checked in tests/eval/test_policy_parity.py, their own behaviour here."""

import dataclasses
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import FLOW, TOKENS, droid_observation, fresh, stats

from configs import my_robot
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import registry
from pi0rag_jax.models.embedding import embed_observation
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.pi0_config import OPENPI_CAMERAS
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.openpi.named_configs import CONFIGS, get_config
from pi0rag_jax.policy import compiling, network
from pi0rag_jax.policy.directory import build, describe
from pi0rag_jax.robots import pipeline
from pi0rag_jax.robots.action_tokens import BinningCodec
from pi0rag_jax.robots.transforms import compose
from pi0rag_jax.steering.agent import Agent


@pytest.fixture(scope="module")
def flow_checkpoint(tmp_path_factory):
  """A tiny pi0.5 with statistics of several robots."""
  directory = tmp_path_factory.mktemp("flow") / "checkpoint"
  robots = {"droid": (8, 8), "my_robot": (7, 7), "physical-intelligence/libero": (8, 7)}
  checkpoints.save_checkpoint(directory, fresh(FLOW), {
    name: {"state": stats(state), "actions": stats(actions)} for name, (state, actions) in robots.items()})
  return directory


@pytest.fixture(scope="module")
def make(flow_checkpoint, text_tokenizer):
  """Returns a function that makes the policy of a configuration and a checkpoint, with other sizes."""

  def made(config="pi05_droid", checkpoint=None, *, model=FLOW, steps=2, decoding_steps=4, **options):
    spec, directory = describe(config, checkpoint or flow_checkpoint)
    spec = dataclasses.replace(spec, sizes=model, denoising_steps=steps, decoding_steps=decoding_steps)
    return build(spec, directory, **{"text_tokenizer": text_tokenizer, "dtype": None, **options})

  return made


@pytest.fixture(scope="module")
def droid_policy(make):
  return make()


@pytest.fixture
def droid(droid_policy):
  return Agent(droid_policy)


def test_actions_are_in_the_robots_form(droid):
  observation = droid_observation()
  out = droid.infer(observation)
  assert out["actions"].shape == (FLOW.action_horizon, 8) and out["actions"].dtype == np.float64
  assert out["policy_timing"]["infer_ms"] > 0 and out.keys() == {"actions", "policy_timing"}
  assert observation.keys() == droid_observation().keys()


def test_noise_decides_the_chunk(droid):
  noise = np.random.default_rng(1).normal(size=(FLOW.action_horizon, FLOW.action_dim)).astype(np.float32)
  first = droid.infer(droid_observation(), noise=noise)["actions"]
  np.testing.assert_array_equal(droid.infer(droid_observation(), noise=noise[None])["actions"], first)
  assert np.abs(droid.infer(droid_observation())["actions"] - first).max() > 1e-3
  with pytest.raises(Pi0RagError, match=r"noise has shape \(1, 3, 16\); allowed: \(1, 4, 16\)"):
    droid.infer(droid_observation(), noise=noise[:3])


def test_seeds_repeat(make):
  one, same, other = (Agent(make(seed=seed)) for seed in (0, 0, 1))
  chunks = [one.infer(droid_observation())["actions"] for _ in range(2)]
  np.testing.assert_array_equal(same.infer(droid_observation())["actions"], chunks[0])
  assert np.abs(chunks[1] - chunks[0]).max() > 1e-3
  assert np.abs(other.infer(droid_observation())["actions"] - chunks[0]).max() > 1e-3


def test_a_start_is_zero_or_one_draw_or_new(flow_checkpoint, text_tokenizer):
  spec, directory = describe("pi05_droid", flow_checkpoint)
  assert spec.start == "new"  # as openpi
  spec = dataclasses.replace(spec, sizes=FLOW, denoising_steps=2)
  chunks = {}
  for start in ("zero", "draw:3", "draw:4"):
    agent = Agent(build(dataclasses.replace(spec, start=start), directory, text_tokenizer=text_tokenizer, dtype=None))
    first, again = (agent.infer(droid_observation())["actions"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    chunks[start] = first
  assert np.abs(chunks["zero"] - chunks["draw:3"]).max() > 1e-3 < np.abs(chunks["draw:3"] - chunks["draw:4"]).max()
  with pytest.raises(Pi0RagError, match="the flow starts at 'gaussian'; allowed: 'zero', 'draw:SEED'"):
    dataclasses.replace(spec, start="gaussian")


def test_joint_positions_are_relative_to_the_state(make, droid):
  relative = Agent(make("pi05_droid_jointpos_polaris"))
  noise = np.zeros((FLOW.action_horizon, FLOW.action_dim))
  difference = (relative.infer(droid_observation(), noise=noise)["actions"]
                - droid.infer(droid_observation(), noise=noise)["actions"])
  # The state has been through float32.
  wanted = np.append(droid_observation()["observation/joint_position"], 0.0)
  np.testing.assert_allclose(difference, np.tile(wanted, (FLOW.action_horizon, 1)), atol=1e-5)


def test_default_prompts(make):
  silent = droid_observation()
  del silent["prompt"]
  with pytest.raises(Pi0RagError, match=r"no 'prompt' and the configuration no default_prompt"):
    make("pi05_droid").model_input(silent)
  config = get_config("pi05_droid")
  configured = dataclasses.replace(config, data=dataclasses.replace(config.data, default_prompt="wipe"))
  tokens = lambda policy: policy.model_input(silent)["tokenized_prompt"].tolist()  # noqa: E731
  assert tokens(make(configured)) == tokens(make("pi05_droid", default_prompt="wipe"))
  assert tokens(make(configured, default_prompt="stack")) == tokens(make("pi05_droid", default_prompt="stack"))


def test_a_robot_of_ones_own(make):
  policy = make(my_robot.get_config())
  observation = my_robot.example_observation()
  assert Agent(policy).infer(observation)["actions"].shape == (FLOW.action_horizon, 7)
  inputs = policy.model_input(observation)
  assert not inputs["image_mask"]["right_wrist_0_rgb"] and inputs["image"]["base_0_rgb"].shape == (64, 64, 3)
  assert list(policy.prepare([observation])["image"]) == ["base_0_rgb", "left_wrist_0_rgb"]
  with pytest.raises(Pi0RagError, match=r"joints has 5 numbers, the robot has 6"):
    policy.model_input({**observation, "joints": np.ones(5)})


@pytest.mark.parametrize("name", ["paligemma_binning_droid", "paligemma_fast_droid", "paligemma_fast_specialist_droid",
                                  "paligemma_vq_droid", "paligemma_diffusion_droid"])
def test_roboarenas_policies_run(name, tmp_path, make):
  config = get_config(name)
  model = TOKENS if config.model.family == "pi0_fast" else dataclasses.replace(FLOW, pi05=False, action_dim=8)
  checkpoints.save_checkpoint(tmp_path / "c", fresh(model),
                              {"droid": {"state": stats(8), "actions": stats(8)}})
  agent = Agent(make(config, tmp_path / "c", model=model, action_codec=BinningCodec(), steps=1))
  assert agent.infer(droid_observation())["actions"].shape == (model.action_horizon, 8)
  if config.model.family == "pi0_fast":
    with pytest.raises(Pi0RagError, match=r"\(pi0_fast\) starts from no noise: leave `noise` out"):
      agent.infer(droid_observation(), noise=np.zeros((4, 8)))


def test_codecs_by_name(monkeypatch):
  asked = []
  monkeypatch.setattr(pipeline.action_tokens.FastCodec, "load", lambda path: asked.append(path))
  monkeypatch.setattr(pipeline.fsq.FsqCodec, "load", lambda path: asked.append(path))
  for name in ("paligemma_fast_droid", "paligemma_fast_specialist_droid", "paligemma_vq_droid"):
    pipeline.load_codec(get_config(name).model)
  assert asked == ["physical-intelligence/fast", "KarlP/fast_droid_specialist",
                   "gs://openpi-assets/tokenizers/droid_fsq_tokenizer"]
  assert isinstance(pipeline.load_codec(get_config("paligemma_binning_droid").model), BinningCodec)


@pytest.mark.parametrize(("config", "options", "message"), [
  ("pi05_drod", {}, r"unknown policy .* 'pi05_drod'\. Did you mean 'pi05_droid'"),
  ("pi05_droid", {"steps": 0}, r"denoising_steps 0, .* must be above 0"),
  ("pi05_aloha", {}, "no norm stats for asset 'trossen' in .*; present: droid, my_robot"),
  ("pi0_droid", {}, "the configuration is of the family pi0, the model of pi05"),
  ("pi05_droid", {"stats": {"state": stats(8)}}, "the statistics lack those of actions; there are state"),
  # Of LIBERO, whose state is as long as DROID's.
  ("pi05_droid", {"stats": {"state": stats(8), "actions": stats(7)}}, "robot 'droid' has 8 dims, .* have 7: they"),
  ("pi05_droid", {"model": dataclasses.replace(FLOW, action_dim=20)},
   r"(?s)3 arrays differ; the first:.*action_in_proj/kernel is \(16, 64\), the model wants \(20, 64\)"),
  ("pi0_fast_droid", {"model": TOKENS, "action_codec": BinningCodec()}, r"of pi0 or pi0\.5, the model is a pi0-FAST"),
])
def test_mistakes_say_what_is_allowed(make, config, options, message):
  with pytest.raises(Pi0RagError, match=message):
    make(config, **options)


@pytest.mark.parametrize(("lost", "message"), [
  ("", r"no checkpoint directory at .*copy"),
  ("assets", r"copy has no assets/, .* expected .*assets/droid/norm_stats\.json"),
  ("params", r"copy is no openpi checkpoint: expected params/ with an Orbax _METADATA file, .*, found assets"),
])
def test_what_is_missing_of_a_checkpoint_is_named(flow_checkpoint, make, tmp_path, lost, message):
  copy = shutil.copytree(flow_checkpoint, tmp_path / "copy")
  shutil.rmtree(copy / lost)
  with pytest.raises(Pi0RagError, match=message):
    make("pi05_droid", copy)


@pytest.mark.parametrize(("changes", "message"), [
  ({"observation/joint_position": np.zeros(8)}, "observation/joint_position has 8 numbers, the robot has 7"),
  ({"observation/joint_position": np.full(7, np.inf)}, "observation/joint_position has NaN or infinity"),
  ({"observation/wrist_image_left": np.full((6, 8, 3), 255.0)}, r"wrist_image_left: float image has values .* allowed"),
  ({"observation/wrist_image_left": np.zeros((6, 8, 4), np.uint8)}, r"has shape \(6, 8, 4\); allowed: \[H, W, 3\]"),
  ({"prompt": ["stack"]}, "prompt is list; allowed: one string"),
])
def test_bad_observations_say_what_is_allowed(droid, changes, message):
  with pytest.raises(Pi0RagError, match=message):
    droid.infer(droid_observation(**changes))


def test_an_observation_is_a_dictionary_and_noise_is_finite(droid):
  with pytest.raises(Pi0RagError, match="the observation is list; allowed: a robot's dictionary"):
    droid.infer([droid_observation()])
  for noise in (np.full((4, 16), np.nan), np.full((4, 16), "a")):
    with pytest.raises(Pi0RagError, match=r"NaN or infinity, or no numbers; allowed: finite"):
      droid.infer(droid_observation(), noise=noise)


def test_a_state_far_out_and_a_long_prompt_are_warned_of(make):
  policy = make()
  far = droid_observation(**{"observation/gripper_position": 255.0})
  with pytest.warns(UserWarning, match=r"dim 7 is 255, the statistics have -2 to 2 \(q01, q99\)\)"):
    policy.model_input(far)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    policy.model_input(far)
  with pytest.warns(UserWarning, match=r"the prompt has \d+ tokens, the model takes 96"):
    found = policy.model_input(droid_observation(prompt="stack the cups " * 40))
  assert found["tokenized_prompt"].shape == (96,) and found["tokenized_prompt_mask"].all()


def test_statistics_without_quantiles_are_refused(tmp_path, make):
  z_scores = {"mean": np.zeros(8), "std": np.ones(8)}
  checkpoints.save_norm_stats(tmp_path, "droid", {"state": z_scores, "actions": z_scores})
  with pytest.raises(Pi0RagError, match=r"statistics for 'droid' in .*: those of state have no q01 and q99"):
    make("pi05_droid", tmp_path)


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
  group = pipeline.policy_transforms(config.data, config.model, model, {}, text_tokenizer=text_tokenizer,
                                          action_codec=BinningCodec())
  assert group.inputs and (group.outputs or config.data.robot == "fake")
  if config.data.robot != "fake":
    # pi0-FAST takes them in the order of their names.
    assert tuple(sorted(compose(group.inputs)(OBSERVATIONS[config.data.robot]())["image"])) == model.image_keys


def test_prefix_embeddings_of_pi0_fast_on_libero(text_tokenizer):
  config = get_config("pi0_fast_libero")
  model = dataclasses.replace(TOKENS, image_keys=config.model.build().image_keys)
  group = pipeline.policy_transforms(config.data, config.model, model, {}, text_tokenizer=text_tokenizer,
                                          action_codec=BinningCodec())
  inputs = compose(group.inputs)(libero_observation())
  obs = Observation.from_dict(jax.tree.map(lambda x: jnp.asarray(x)[None], inputs))
  found = embed_observation(registry.network(model), fresh(TOKENS), obs, layer="input", pool="camera")
  assert found.key_BE.shape == (1, 3 * model.paligemma.width) and found.mask_BS.shape == (1, model.prefix_tokens)


def test_no_request_waits_for_the_compiler(tmp_path, make):
  model = dataclasses.replace(FLOW, pi05=False, max_token_len=24, action_dim=8)
  checkpoints.save_checkpoint(tmp_path / "c", fresh(model), {"droid": {"state": stats(8), "actions": stats(8)}})
  agent = Agent(make("pi0_droid", tmp_path / "c", model=model, steps=1))
  agent.compile(droid_observation(prompt="stack"))
  with compiling.counted() as at_a_request:
    agent.infer(droid_observation(prompt="wave"))
  with compiling.counted() as ahead:
    agent.compile(droid_observation(prompt="stack"), all_prompts=True)
  long = droid_observation(prompt=" and ".join(["stack the cups and the cubes"] * 2))
  with compiling.counted() as at_a_long_one:
    agent.infer(long)
  assert 16 < agent.policy.model_input(long)["tokenized_prompt_mask"].sum() <= 24
  # A longer prompt needs another prefix, and the flow that attends to it.
  assert (at_a_request.needed, ahead.needed, at_a_long_one.needed) == (0, 2, 0)


def test_prompts_that_come_again_stay_on_the_device(droid_policy):
  sample = droid_policy.model_input(droid_observation())
  prompts = [{**sample, "tokenized_prompt": sample["tokenized_prompt"] + i} for i in range(1, 70)]
  first, second, third = (droid_policy.batch(prompts[:1])["tokenized_prompt"] for _ in range(3))
  assert isinstance(first, np.ndarray) and isinstance(second, jax.Array) and second is third
  np.testing.assert_array_equal(first, second)
  for other in prompts[1:]:
    assert isinstance(droid_policy.batch([other])["tokenized_prompt"], np.ndarray)
  assert isinstance(droid_policy.batch(prompts[:1])["tokenized_prompt"], np.ndarray), "only so many are kept"


def test_what_the_masks_of_all_rows_hide_is_left_out(droid_policy):
  sample = droid_policy.model_input(droid_observation())
  mask, shown = np.arange(96) < 17, lambda on: {name: np.bool_(name in on) for name in OPENPI_CAMERAS}
  rows = [{**sample, "image_mask": shown(on), "tokenized_prompt_mask": mask}
          for on in (["base_0_rgb"], ["base_0_rgb", "right_wrist_0_rgb"])]
  first = droid_policy.batch(rows[:1])
  assert list(first["image"]) == ["base_0_rgb"] and "image_mask" not in first
  both = droid_policy.batch(rows)
  assert list(both["image"]) == ["base_0_rgb", "right_wrist_0_rgb"]
  np.testing.assert_array_equal(both["image_mask"]["right_wrist_0_rgb"], [False, True])
  assert both["tokenized_prompt"].shape == both["tokenized_prompt_mask"].shape == (2, 32)
  np.testing.assert_array_equal(both["tokenized_prompt_mask"][0], np.arange(32) < 17)
  blind = droid_policy.batch([{**sample, "image_mask": shown([])}])
  assert list(blind["image"]) == ["base_0_rgb"] and not blind["image_mask"]["base_0_rgb"].any()


def test_matrices_may_be_int8(make):
  small, noise = make(weights="int8"), np.zeros((FLOW.action_horizon, FLOW.action_dim))
  actions_TA, exact_TA = (Agent(each).infer(droid_observation(), noise=noise)["actions"] for each in (small, make()))
  assert 0 < np.abs(actions_TA - exact_TA).max() < 0.05 * np.abs(exact_TA).max()
  count = lambda policy: sum(x.nbytes for x in jax.tree.leaves(policy.params))  # noqa: E731
  assert count(small) < count(make())
  with pytest.raises(Pi0RagError, match="storage of weights"):
    make(weights="int9")


@pytest.mark.parametrize(("dtype", "weights", "packed"), [
  ("bfloat16", None, False), ("bfloat16", "int8", True), ("float32", None, True)])
def test_a_cpu_converts_layer_by_layer(make, dtype, weights, packed):
  if jax.default_backend() != "cpu":
    pytest.skip("other backends multiply bfloat16 as it is")
  assert make(dtype=dtype, weights=weights).network.packed == packed


def test_prompts_of_other_shapes_are_other_prompts():
  repeated = network._Repeated()
  whole, halves = ({"prompt": np.arange(8).reshape(shape)} for shape in ((1, 8), (2, 4)))
  for arrays in (whole, whole, halves, halves):
    assert repeated.on_device(arrays)["prompt"].shape == arrays["prompt"].shape
