"""Packed parameters compute what openpi's tree does, and the program has nothing that costs bandwidth for no gain."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import packing, pi0
from pi0rag_jax.models.lora import LoraConfig

SAMPLE = jax.jit(pi0.sample_actions, static_argnums=0, static_argnames="num_steps")
GATE = 2e-5  # as of the stages against openpi, float32


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


def test_the_flow_loop_moves_no_weights(packed, obs, noise_BTA):
  params, config = packed
  lowered = SAMPLE.lower(pi0.Pi0(config), jax.eval_shape(lambda: params), obs, noise_BTA, num_steps=10)
  text = lowered.compile().as_text()
  loops = re.findall(r'"known_trip_count":{"n":"(\d+)"', text)
  assert loops == ["10"], "one loop, whose trip count is known"
  weights = {leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1}
  body = _loop_body(text)
  for operation, shape in re.findall(r"= \w+\[([\d,]*)\]\S* (dynamic-slice|transpose|concatenate|copy)\(", body):
    size = np.prod([int(n) for n in operation.split(",") if n], dtype=int)
    assert size not in weights, f"{shape} of {operation} in the loop"
  assert not re.search(r"(infeed|outfeed|send|recv|custom-call.*callback)", body)


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
