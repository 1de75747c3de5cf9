import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.gemma import FeedForward, Gemma, GemmaConfig, RMSNorm

CONFIG = GemmaConfig(width=8, depth=2, mlp_dim=12, num_heads=2, num_kv_heads=2, head_dim=4)


def test_rms_norm_by_hand():
  normed, gate = RMSNorm(2).apply({"params": {"scale": jnp.array([0.0, 1.0])}}, jnp.array([[[3.0, 4.0]]]))
  # The root mean square of (3, 4) is sqrt(12.5).
  np.testing.assert_allclose(normed[0, 0], [3 / 12.5**0.5, 8 / 12.5**0.5], rtol=1e-6)
  assert gate is None


def test_adaptive_norm_takes_scale_shift_and_gate_in_this_order():
  bias = jnp.array([1.0, 1.0, 10.0, 10.0, 0.5, 0.25])
  norm = RMSNorm(2).bind({"params": {"Dense_0": {"kernel": jnp.zeros((3, 6)), "bias": bias}}})
  normed, gate = norm(jnp.array([[[3.0, 4.0]]]), norm.modulate(jnp.ones((1, 3))))
  np.testing.assert_allclose(normed[0, 0], [10 + 6 / 12.5**0.5, 10 + 8 / 12.5**0.5], rtol=1e-6)
  np.testing.assert_allclose(gate[0, 0], [0.5, 0.25])


def test_feed_forward_by_hand():
  params = {"gating_einsum": jnp.array([[[1.0]], [[2.0]]]), "linear": jnp.array([[3.0]])}
  out = FeedForward(1, 1).apply({"params": params}, jnp.array([[[1.5]]]))
  np.testing.assert_allclose(out, jax.nn.gelu(1.5, approximate=True).reshape(1, 1, 1) * 3.0 * 3.0, rtol=1e-6)


def test_as_many_key_heads_as_heads_gives_openpis_fused_projection(random_params):
  gemma = Gemma((CONFIG,), vocab_size=5)
  x, positions, mask = jnp.ones((1, 3, 8)), jnp.arange(3)[None], jnp.ones((1, 3, 3), bool)
  params = random_params(gemma.init, (x,), positions, mask)["params"]
  flat = traverse_util.flatten_dict(params, sep="/")
  assert flat["layers/attn/qkv_einsum/w"].shape == (2, 3, 2, 8, 4)
  assert not {"layers/attn/q_einsum/w", "layers/attn/kv_einsum/w"} & set(flat)
  (out,), (keys, _) = jax.jit(gemma.apply)({"params": params}, (x,), positions, mask)
  assert out.shape == (1, 3, 8) and keys.shape == (2, 1, 3, 2, 4)


def test_embeddings_are_scaled_by_the_root_of_the_width():
  params = {"embedder": {"input_embedding": jnp.arange(40.0).reshape(5, 8)}}
  embedded = Gemma((CONFIG,), vocab_size=5).apply({"params": params}, jnp.array([[2]]), method=Gemma.embed)
  np.testing.assert_allclose(embedded[0, 0], np.arange(16, 24) * 8**0.5, rtol=1e-6)


@pytest.mark.parametrize(("field", "value"), [("num_kv_heads", 3), ("head_dim", 5)])
def test_impossible_sizes_are_named(field, value):
  with pytest.raises(Pi0RagError, match=field):
    dataclasses.replace(CONFIG, **{field: value})
