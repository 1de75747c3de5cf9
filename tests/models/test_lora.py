import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import lora
from pi0rag_jax.models.gemma import EQUATIONS, FeedForward
from pi0rag_jax.models.lora import Einsum, LoraConfig


@pytest.mark.parametrize(("config", "scale"), [
  (LoraConfig(rank=16, alpha=16.0), 1.0),
  (LoraConfig(rank=4, alpha=10.0), 2.5),
  (LoraConfig(rank=4, alpha=10.0, rslora=True), 5.0),
])
def test_scale(config, scale):
  assert config.scale == scale


def test_equations_are_openpis():
  assert lora.adapter_equations("BTD,NDH->BTNH") == ("BTD,NDL->BTNL", "BTNL,NLH->BTNH")
  assert lora.adapter_equations("BTD,CKDH->CBTKH") == ("BTD,CKDL->CBTKL", "CBTKL,CKLH->CBTKH")
  assert lora.adapter_equations("BTNH,NHD->BTD") == ("BTNH,NHL->BTL", "BTL,NLD->BTD")


def test_heads_meet_in_the_output_projection_by_hand():
  # One token, two heads of one number, rank 1: (2 * 3 + 5 * 7) * (11 + 13), scaled by 1 / 2, beside 2 * 1 + 5 * 1.
  a, b = jnp.array([[[3.0]], [[7.0]]]), jnp.array([[[11.0]], [[13.0]]])
  params = {"w": jnp.ones((2, 1, 1)), "lora_a": a, "lora_b": b}
  out = Einsum((2, 1, 1), jax.nn.initializers.zeros, LoraConfig(1, 0.5)).apply(
    {"params": params}, EQUATIONS["attn_vec_einsum"], jnp.array([[[[2.0], [5.0]]]]))
  assert float(out[0, 0, 0]) == 7 + 41 * 24 / 2


@pytest.mark.parametrize("name", sorted(EQUATIONS))
def test_the_delta_of_a_weight_is_what_its_adapter_does(name):
  shape = {"q_einsum": (3, 6, 4), "kv_einsum": (2, 3, 6, 4), "qkv_einsum": (3, 3, 6, 4), "attn_vec_einsum": (3, 4, 6)}
  rng = np.random.default_rng(0)
  w, a, b = (rng.normal(size=s).astype(np.float32)
             for s in (shape[name], (*shape[name][:-1], 2), (*shape[name][:-2], 2, shape[name][-1])))
  x = rng.normal(size=(2, 5, 3, 4) if name == "attn_vec_einsum" else (2, 5, 6)).astype(np.float32)
  config = LoraConfig(2, 3.0)
  layer = Einsum(shape[name], jax.nn.initializers.zeros, config)
  wanted = layer.apply({"params": {"w": w, "lora_a": a, "lora_b": b}}, EQUATIONS[name], x)
  merged = w + lora.weight_delta(a, b, coupled=lora.coupled_axes(EQUATIONS[name]), scale=config.scale)
  np.testing.assert_allclose(np.einsum(EQUATIONS[name], x, merged), wanted, rtol=1e-4, atol=1e-4)


def test_feed_forward_adapters_have_no_scale():
  weights = {"gating_einsum": jnp.array([[[1.0]], [[2.0]]]), "linear": jnp.array([[3.0]])}
  adapters = {
    "gating_einsum_lora_a": jnp.array([[[0.5]], [[2.0]]]), "gating_einsum_lora_b": jnp.array([[[1.0]], [[3.0]]]),
    "linear_lora_a": jnp.array([[2.0]]), "linear_lora_b": jnp.array([[0.5]])}
  out = FeedForward(1, 1, LoraConfig(1, 100.0)).apply({"params": weights | adapters}, jnp.array([[[1.5]]]))
  # The gate's weight becomes 1 + 0.5 * 1, the up projection's 2 + 2 * 3, the down projection's 3 + 2 * 0.5.
  np.testing.assert_allclose(out, jax.nn.gelu(2.25, approximate=True).reshape(1, 1, 1) * 12 * 4, rtol=1e-6)


def test_a_rank_of_nothing_is_refused():
  with pytest.raises(Pi0RagError, match="rank is 0, at least 1"):
    LoraConfig(0, 1.0)
