"""The arithmetic of the models, against openpi's records: a compact copy of the reference's arrays."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.models import attention, flow
from pi0rag_jax.models.gemma import FeedForward, RMSNorm

RECORDED = np.load(pathlib.Path(__file__).with_name("recorded.npz"))
# float32 of another compilation.
GATE = 1e-6
# One ulp of the largest phase, 500 pi at t = 1, is 1.2e-4.
PHASE_GATE = 2e-4


@pytest.mark.parametrize("width", [4, 32, 1024])
def test_time_embedding(width):
  time_B, wanted = RECORDED["posemb/t"], RECORDED[f"posemb/{width}"]
  found = np.asarray(flow.posemb_sincos(time_B, width))
  np.testing.assert_allclose(found, wanted, rtol=0, atol=PHASE_GATE)
  # A phase loses to rounding in proportion to its size.
  phase = 2 * np.pi * time_B[:, None] / np.tile(0.004 * 1000 ** np.linspace(0, 1, width // 2), 2)
  assert (np.abs(found - wanted) <= GATE * np.maximum(phase, 1)).all()


@pytest.mark.parametrize("case", range(4))
def test_attention_mask(case):
  given, ar, wanted = (RECORDED[f"mask/{case}/{name}"] for name in ("input", "ar", "out"))
  np.testing.assert_array_equal(attention.attention_mask(jnp.array(given)[None], ar)[0], wanted)


@pytest.mark.parametrize(("dtype", "key", "gate"), [
  ("float32", "rope/out", GATE), ("bfloat16", "rope/out_bf16_as_f32", 0)])
def test_rotary_positions(dtype, key, gate):
  angles = attention.rotary_angles(jnp.array(RECORDED["rope/pos"]), RECORDED["rope/x"].shape[-1])
  found = attention.rotate(jnp.asarray(RECORDED["rope/x"], dtype), angles)
  assert found.dtype == dtype
  np.testing.assert_allclose(np.asarray(found, np.float32), RECORDED[key], rtol=0, atol=gate)


def test_norms():
  width = RECORDED["rmsnorm/x"].shape[-1]
  normed, _ = RMSNorm(width).apply({"params": {"scale": RECORDED["rmsnorm/scale"]}}, RECORDED["rmsnorm/x"])
  np.testing.assert_allclose(normed, RECORDED["rmsnorm/out"], rtol=0, atol=GATE)
  dense = {"Dense_0": {"kernel": RECORDED["adarms/kernel"], "bias": RECORDED["adarms/bias"]}}
  norm = RMSNorm(width).bind({"params": dense})
  normed, gate = norm(RECORDED["rmsnorm/x"], norm.modulate(RECORDED["adarms/cond"]))
  np.testing.assert_allclose(normed, RECORDED["adarms/out"], rtol=0, atol=GATE)
  np.testing.assert_allclose(gate, RECORDED["adarms/gate"], rtol=0, atol=GATE)


def test_gelu():
  x = RECORDED["gelu/x"]
  # The gate of a feed-forward network of width 1 is the gelu; it is multiplied by the other half, here x.
  params = {"gating_einsum": np.ones((2, 1, 1), np.float32), "linear": np.ones((1, 1), np.float32)}
  # Compiled as users do: without LLVM's optimizations tanh is rounded otherwise, which 1 + tanh magnifies near -1.
  apply = jax.jit(FeedForward(1, 1).apply, compiler_options={"xla_backend_optimization_level": 2})
  found = apply({"params": params}, x[:, None])
  np.testing.assert_allclose(found[:, 0], RECORDED["gelu/out"] * x, rtol=GATE, atol=GATE)
