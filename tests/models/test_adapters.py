import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import adapters, pi0
from pi0rag_jax.models.lora import LoraConfig


@pytest.fixture(scope="module")
def adapted(config, random_params):
  """A model with adapters of several strengths on both experts, and its parameters."""
  paligemma = dataclasses.replace(
    config.paligemma, lora_attn=LoraConfig(2, 5.0), lora_ffn=LoraConfig(3, 7.0, rslora=True))
  expert = dataclasses.replace(config.expert, lora_attn=LoraConfig(2, 1.0, rslora=True), lora_ffn=LoraConfig(2, 9.0))
  config = dataclasses.replace(config, paligemma=paligemma, expert=expert)
  return config, random_params(functools.partial(pi0.init, config))


def test_merged_computes_what_base_and_adapters_do(config, adapted, obs, noise_BTA):
  adapted_config, params = adapted
  merged, plain_config = adapters.merge(params, adapted_config)
  assert plain_config == config
  time_B = jnp.array([0.2, 0.5, 1.0])
  run = lambda c, p: jax.jit(lambda p: pi0.Pi0(c).apply({"params": p}, obs, noise_BTA, time_B, method="joint"))(p)  # noqa: E731
  wanted, seen = run(adapted_config, params), run(plain_config, merged)
  valid_BS = obs_mask(obs)
  np.testing.assert_allclose(seen[0][valid_BS], wanted[0][valid_BS], atol=1e-4)
  np.testing.assert_allclose(seen[2], wanted[2], atol=1e-4)
  # The adapters do something, or the test would say nothing.
  bare = {path: x for path, x in traverse_util.flatten_dict(params, sep="/").items() if "lora" not in path}
  without = run(plain_config, traverse_util.unflatten_dict(bare, sep="/"))
  assert np.abs(without[2] - wanted[2]).max() > 1e-2


def obs_mask(obs):
  cameras = [np.repeat(np.asarray(mask)[:, None], 6, axis=1) for mask in obs.image_masks.values()]
  return np.concatenate([*cameras, np.asarray(obs.tokenized_prompt_mask)], axis=1)


def test_sums_are_rounded_once(adapted):
  config, params = adapted
  path = "PaliGemma/llm/layers/attn/q_einsum"
  base, a, b = (traverse_util.flatten_dict(params, sep="/")[f"{path}/{name}"] for name in ("w", "lora_a", "lora_b"))
  merged = traverse_util.flatten_dict(adapters.merge(params, config, dtype=jnp.bfloat16)[0], sep="/")
  assert {x.dtype for x in merged.values()} == {jnp.dtype(jnp.bfloat16)}
  wanted = (base + 2.5 * np.einsum("XNDL,XNLH->XNDH", a, b)).astype(jnp.bfloat16)
  np.testing.assert_array_equal(merged[f"{path}/w"], wanted)


def test_each_array_keeps_its_dtype_by_default(adapted):
  config, params = adapted
  flat = traverse_util.flatten_dict(params, sep="/")
  stored = {p: x if adapters.is_trainable(p, config) else x.astype(jnp.bfloat16) for p, x in flat.items()}
  merged, _ = adapters.merge(traverse_util.unflatten_dict(stored, sep="/"), config)
  for path, array in traverse_util.flatten_dict(merged, sep="/").items():
    assert array.dtype == stored[path].dtype, path


def test_without_adapters_nothing_changes(config, params):
  merged, same = adapters.merge(params, config)
  assert same == config
  jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_other_adapters_than_configured_are_named(config, params, adapted):
  with pytest.raises(Pi0RagError, match=r"missing PaliGemma/llm/layers/attn/attn_vec_einsum/lora_a, .*; beyond it"):
    adapters.merge(params, adapted[0])
  with pytest.raises(Pi0RagError, match=r"missing none; beyond it PaliGemma/llm/layers/attn/attn_vec_einsum/lora_a"):
    adapters.merge(adapted[1], config)


def test_experts_with_adapters_are_frozen(adapted):
  config, params = adapted
  paths = traverse_util.flatten_dict(params, sep="/")
  # 8 arrays of each expert, as in the manifests, and the token table.
  assert sum(not adapters.is_trainable(path, config) for path in paths) == 17
