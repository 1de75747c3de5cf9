"""Packed parameters compute what openpi's tree does, and the program has nothing that costs bandwidth for no gain."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import packing, pi0
from pi0rag_jax.models.dense import Dense
from pi0rag_jax.models.lora import LoraConfig
from pi0rag_jax.models.pi0_config import ALIGNED

SAMPLE = jax.jit(pi0.sample_actions, static_argnums=0, static_argnames="num_steps")
GATE = 2e-5  # as of the stages against openpi, float32
# Of the chunk's distance from the noise, root mean squares. Rounding to 1/127 of the largest of some twenty normal
# weights puts each product off by 0.5 % of itself; measured are 0.7 % (pi0) and 0.9 % (pi0.5).
INT8_GATE = 0.02
ARRAY = re.compile(r"\w+\[[\d,]*\]")  # as a program names it


@pytest.fixture
def packed(config, params):
  return packing.pack(params, config)


def with_adapters(config):
  lora = LoraConfig(rank=2, alpha=4.0)
  adapted = {name: dataclasses.replace(getattr(config, name), lora_attn=lora, lora_ffn=lora)
             for name in ("paligemma", "expert")}
  return dataclasses.replace(config, **adapted)


@pytest.mark.parametrize("change", ["as it is", "pi05", "adapters", "all heads have keys"])
def test_packed_parameters_are_the_same_function(config, random_params, obs, noise_BTA, change):
  if change == "pi05":
    config = dataclasses.replace(config, pi05=True)
  elif change == "adapters":
    config = with_adapters(config)
  elif change == "all heads have keys":
    config = dataclasses.replace(config, paligemma=dataclasses.replace(config.paligemma, num_kv_heads=2),
                                 expert=dataclasses.replace(config.expert, num_kv_heads=2))
  params = random_params(functools.partial(pi0.init, config))
  packed_params, packed_config = packing.pack(params, config)
  chunk_BTA = SAMPLE(pi0.Pi0(packed_config), packed_params, obs, noise_BTA, num_steps=3)
  wanted_BTA = SAMPLE(pi0.Pi0(config), params, obs, noise_BTA, num_steps=3)
  np.testing.assert_allclose(chunk_BTA, wanted_BTA, atol=GATE * np.abs(wanted_BTA).max())
  assert np.abs(wanted_BTA - noise_BTA).max() > 0.1


@pytest.mark.parametrize("pi05", [False, True])
def test_aligned_parameters_are_the_same_function(config, random_params, obs, noise_BTA, pi05):
  """Also for those who lead the flow elsewhere: they see none of the padding."""
  config = dataclasses.replace(config, pi05=pi05)
  params = random_params(functools.partial(pi0.init, config))
  assert config.action_horizon % ALIGNED and (config.prefix_tokens + 1 - pi05) % ALIGNED, "nothing is padded"

  def chunks(packed_params, packed_config):
    model = pi0.Pi0(packed_config)
    prefix = pi0.encode_prefix(model, packed_params, obs, keys_only=True)
    led_BTA = pi0.denoise(model, packed_params, prefix, obs.state, noise_BTA, num_steps=3,
                          correct=lambda clean_BTA: clean_BTA / 2 + jnp.ones_like(noise_BTA))
    return led_BTA, pi0.invert(model, packed_params, prefix, obs.state, noise_BTA, num_steps=1, iterations=1)

  aligned, plain = (
    jax.jit(functools.partial(chunks, packed_config=packed_config))(packed_params)
    for packed_params, packed_config in (packing.pack(params, config, aligned=aligned) for aligned in (True, False)))
  for chunk_BTA, wanted_BTA in zip(aligned, plain):
    np.testing.assert_allclose(chunk_BTA, wanted_BTA, atol=GATE * np.abs(wanted_BTA).max())
    assert np.abs(wanted_BTA - noise_BTA).max() > 0.1


def test_aligned_parameters_must_be_packed(config):
  with pytest.raises(Pi0RagError, match=r"packed parameters alone: see packing\.pack"):
    dataclasses.replace(config, aligned=True)


@pytest.mark.parametrize("pi05", [False, True])
def test_int8_computes_what_its_rounded_matrices_do(config, random_params, obs, noise_BTA, pi05):
  config = dataclasses.replace(config, pi05=pi05)
  params = random_params(functools.partial(pi0.init, config))
  int8_params, packed_config = packing.pack(params, config, weights="int8")
  sample = functools.partial(SAMPLE, pi0.Pi0(packed_config), obs=obs, noise_BTA=noise_BTA, num_steps=3)
  chunk_BTA, rounded_BTA = sample(params=int8_params), sample(params=dequantized(int8_params))
  np.testing.assert_allclose(chunk_BTA, rounded_BTA, atol=GATE * np.abs(rounded_BTA).max())
  exact_BTA = sample(params=packing.pack(params, config)[0])
  error, motion = (np.sqrt(np.mean(np.square(a))) for a in (chunk_BTA - exact_BTA, exact_BTA - noise_BTA))
  assert error < INT8_GATE * motion


def dequantized(params):
  """Returns the parameters with each matrix of int8 as the numbers that it stands for."""
  if not isinstance(params, dict):
    return params
  if params.keys() >= {"kernel", "scale"}:
    rest = {name: leaf for name, leaf in params.items() if name != "scale"}
    return rest | {"kernel": params["kernel"] * params["scale"]}
  return {name: dequantized(part) for name, part in params.items()}


def test_int8_is_within_half_a_scale_and_a_quarter_of_the_bytes():
  kernel_DF = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32) * np.arange(7)
  stored = packing.quantize(kernel_DF)
  assert {name: (array.shape, str(array.dtype)) for name, array in stored.items()} == {
    "kernel": ((40, 7), "int8"), "scale": ((7,), "float32")}
  error_DF = np.abs(stored["kernel"] * stored["scale"] - kernel_DF)
  assert (error_DF <= stored["scale"] / 2 * (1 + 1e-5)).all()
  assert not stored["kernel"][:, 0].any(), "a column of zeros stays one"
  np.testing.assert_array_equal(np.abs(stored["kernel"][:, 1:]).max(axis=0), 127)


@pytest.mark.parametrize(("weights", "rounding"), [("fp8", 2**-4), ("bfloat16", 2**-9)])
def test_products_of_less_precision_round_both_factors_and_sum_in_float32(weights, rounding):
  rng = np.random.default_rng(0)
  kernel_DF = rng.normal(size=(64, 7)).astype(np.float32) * 10.0 ** np.arange(-3, 4)
  x_BD = rng.normal(size=(5, 64)).astype(np.float32) * 10.0 ** np.arange(-2, 3)[:, None]
  x_BD[4] = 0
  stored = packing.WEIGHTS[weights](kernel_DF)
  dtype = stored["kernel"].dtype
  y_BF = np.asarray(Dense(7, use_bias=False).apply({"params": stored}, x_BD))
  unit_B = np.where(np.arange(5) < 4, np.abs(x_BD).max(axis=1) / 448, 1)[:, None] if weights == "fp8" else 1
  rounded_BD, rounded_DF = ((x_BD / unit_B).astype(np.float32).astype(dtype).astype(float) * unit_B,
                            stored["kernel"].astype(float) * stored["scale"])
  largest_F = np.abs(y_BF).max(axis=0)
  np.testing.assert_allclose(y_BF / largest_F, rounded_BD @ rounded_DF / largest_F, atol=1e-5)
  error_BF = np.abs(y_BF - x_BD @ kernel_DF) / np.maximum(np.abs(x_BD) @ np.abs(kernel_DF), 1e-9)
  assert rounding / 16 < error_BF[:4].max() < 2 * rounding


def test_w8a8_rounds_both_factors_to_int8_and_sums_without_error():
  rng = np.random.default_rng(0)
  kernel_DF = rng.normal(size=(64, 7)).astype(np.float32) * 10.0 ** np.arange(-3, 4)
  x_BD = rng.normal(size=(5, 64)).astype(np.float32) * 10.0 ** np.arange(-2, 3)[:, None]
  x_BD[4] = 0
  stored = packing.WEIGHTS["w8a8"](kernel_DF)
  assert stored["turned"].shape == (7, 64) and stored["turned"].dtype == np.int8
  bias_F = np.arange(7, dtype=np.float32)
  y_BF = np.asarray(Dense(7).apply({"params": {**stored, "bias": bias_F}}, x_BD))
  unit_B1 = np.abs(x_BD).max(axis=1, keepdims=True) / np.float32(127)
  rounded_BD = np.rint(x_BD / np.where(unit_B1 > 0, unit_B1, 1)).astype(int)
  sum_BF = rounded_BD @ stored["turned"].T.astype(int)
  np.testing.assert_allclose(y_BF, sum_BF * unit_B1 * stored["scale"] + bias_F, rtol=1e-6)


def test_w8a8_samples_nearly_the_same_chunk(config, params, obs, noise_BTA):
  sample = lambda weights: np.asarray(SAMPLE(  # noqa: E731
    pi0.Pi0(dataclasses.replace(config, packed=True)), packing.pack(params, config, weights=weights)[0], obs, noise_BTA,
    num_steps=3))
  exact_BTA, rounded_BTA = sample(None), sample("w8a8")
  error, motion = (np.sqrt(np.mean(np.square(a))) for a in (rounded_BTA - exact_BTA, exact_BTA - noise_BTA))
  assert 0 < error < 2 * INT8_GATE * motion


def test_int8_stores_every_matrix_of_the_layers(config, params, packed):
  int8_params, _ = packing.pack(params, config, weights="int8")
  was, now = (traverse_util.flatten_dict(tree, sep="/") for tree in (packed[0], int8_params))
  matrices = [path for path in was if now[path].dtype == np.int8]
  # Per layer queries, keys and values, what combines heads, and two of the feed-forward network: two experts, a tower.
  assert len(matrices) == 4 * (2 * config.paligemma.depth + config.siglip.depth)
  scales = {path.removesuffix("kernel") + "scale" for path in matrices}
  assert now.keys() - was.keys() == scales
  for path in matrices:
    assert now[path].nbytes == was[path].nbytes / 4
    assert now[path.removesuffix("kernel") + "scale"].nbytes == 4 * was[path].shape[1]
  for path in was.keys() - set(matrices):
    np.testing.assert_array_equal(now[path], was[path])


def test_an_unknown_storage_of_weights_is_named(config, params):
  with pytest.raises(Pi0RagError, match=r"unknown storage of weights 'int4'.*Valid names: bfloat16, fp8, int8, w8a8"):
    packing.pack(params, config, weights="int4")


def test_the_packed_tree_is_that_of_its_configuration(packed):
  params, config = packed
  wanted = jax.eval_shape(functools.partial(pi0.init, config), jax.random.key(0))
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)  # noqa: E731
  assert shapes(params) == shapes(wanted)
  with pytest.raises(Pi0RagError, match="packed already"):
    packing.pack(params, config)


def test_the_prefix_of_packed_parameters_has_hidden_states_where_wanted(config, model, params, packed, obs):
  encode = jax.jit(pi0.encode_prefix, static_argnums=0, static_argnames="keys_only")
  packed_model, packed_params = pi0.Pi0(packed[1]), packed[0]
  wanted = encode(model, params, obs)
  whole, trimmed = (encode(packed_model, packed_params, obs, keys_only=only) for only in (False, True))
  np.testing.assert_allclose(whole.hidden_BSD[wanted.mask_BS], wanted.hidden_BSD[wanted.mask_BS], atol=GATE)
  assert trimmed.hidden_BSD is None
  for layer, (keys, values) in enumerate(zip(*trimmed.kv_cache)):
    np.testing.assert_allclose(keys[wanted.mask_BS], wanted.kv_cache[0][layer][wanted.mask_BS], atol=GATE)
    np.testing.assert_allclose(values[wanted.mask_BS], wanted.kv_cache[1][layer][wanted.mask_BS], atol=GATE)


@pytest.mark.parametrize("weights", [None, "int8"])
@pytest.mark.parametrize("pi05", [False, True])
def test_the_flow_loop_moves_no_weights(config, random_params, obs, noise_BTA, pi05, weights):
  # Nothing else in the loop has the shape of a weight of these, or as many numbers as a modulation's.
  config = dataclasses.replace(config, pi05=pi05, expert=dataclasses.replace(config.expert, width=20, mlp_dim=14))
  params, packed_config = packing.pack(random_params(functools.partial(pi0.init, config)), config, weights=weights)
  text = SAMPLE.lower(pi0.Pi0(packed_config), params, obs, noise_BTA, num_steps=10).compile().as_text()
  assert text
  loops = re.findall(r'"known_trip_count":{"n":"(\d+)"', text)
  assert loops == ["10"], "one loop, whose trip count is known"
  sizes = {leaf.size for leaf in jax.tree.leaves(params["PaliGemma"]) if leaf.ndim > 1}
  body = _loop_body(text)
  for shape, operation in re.findall(r"= (\w+\[[\d,]*\])\S* (dynamic-slice|transpose|concatenate|copy)\(", body):
    assert _size(shape) not in sizes, f"{operation} of {shape} in the loop"
  assert not re.search(r"(infeed|outfeed|send|recv|custom-call.*callback)", body)

  assert 3 * config.expert.width**2 not in map(_size, ARRAY.findall(body)), "a modulation is multiplied in the loop"
  # What goes into the loop: each step reads the weights as they are stored.
  (carried,) = re.findall(r"= (\(.*\)) while\(", text)
  expert = params["PaliGemma"]["llm"]["layers_0"]
  matrices = [expert["attn"]["qkv_1"], expert["attn"]["out_1"], expert["mlp_1"]["gating"], expert["mlp_1"]["linear"]]
  for shape in ("[{},{}]".format(*matrix["kernel"].shape) for matrix in matrices):
    found = {array for array in ARRAY.findall(carried) if array.endswith(shape)}
    assert found == {("f32" if weights is None else "s8") + shape}


def test_all_cameras_are_one_call_of_the_image_tower(config, params, packed, obs, noise_BTA):
  assert len(obs.images) > 1
  packed_params, packed_config = packed
  text = SAMPLE.lower(pi0.Pi0(packed_config), packed_params, obs, noise_BTA, num_steps=2).as_text()
  *patch, width = packed_params["PaliGemma"]["img"]["embedding"]["kernel"].shape
  kernel = f"tensor<{math.prod(patch)}x{width}xf32>"
  products = [line for line in text.splitlines() if "dot_general" in line and kernel in line]
  assert len(products) == 1, "one embedding of the patches of all cameras"


def _size(array: str) -> int:
  """Returns the number of entries of an array that a program names, as 'f32[3,4]'."""
  return math.prod(int(n) for n in re.findall(r"\d+", array.split("[")[1]))


def _loop_body(text: str) -> str:
  """Returns the computations that a program's while loop calls."""
  name = re.search(r"while\(.*body=%?([\w.\-]+)", text)
  assert name, "there is no loop"
  computations = dict(re.findall(r"^%?([\w.\-]+) \(.*?\{\n(.*?)^\}", text, flags=re.M | re.S))
  found, waiting = [], [name[1]]
  while waiting:
    here = computations.get(waiting.pop(), "")
    found.append(here)
    waiting += re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", here)
  return "\n".join(found)
