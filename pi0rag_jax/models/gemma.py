"""Gemma as a mixture of experts: streams of tokens with their own weights that share one attention.

Expert 0 is PaliGemma's language model, expert 1 the action expert; parameters of expert i > 0 end in `_i`.
Any subset of the streams can be given, so the same module is the training forward pass over both, the prefix
pass alone, and the suffix pass over a cached prefix.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import attention

RMS_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
  """Sizes of one expert; experts of one mixture share depth, heads and head_dim."""

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise Pi0RagError(
        f"gemma: num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
    if self.head_dim % 2:
      raise Pi0RagError(f"gemma: head_dim {self.head_dim} is odd; rotary positions need an even one")


def expert_name(name: str, index: int) -> str:
  """Returns the parameter name of expert `index`: the first has no suffix."""
  return name if index == 0 else f"{name}_{index}"


class RMSNorm(nn.Module):
  """Root-mean-square norm in float32; adaptive, with a gate, when a condition is given."""

  @nn.compact
  def __call__(self, x_BSD, cond_BD=None):
    """Returns (normed x, gate[B, 1, D] or None for the residual that follows)."""
    x32_BSD = x_BSD.astype(jnp.float32)
    variance = jnp.mean(jnp.square(x32_BSD), axis=-1, keepdims=True)
    normed_BSD = x32_BSD / jnp.sqrt(variance + RMS_EPSILON)
    width = x_BSD.shape[-1]
    if cond_BD is None:
      scale = self.param("scale", nn.initializers.zeros, (width,))
      return (normed_BSD * (1 + scale)).astype(x_BSD.dtype), None
    dense = nn.Dense(3 * width, dtype=x_BSD.dtype, kernel_init=nn.initializers.zeros, name="Dense_0")
    scale, shift, gate = jnp.split(dense(cond_BD)[:, None, :], 3, axis=-1)
    return (normed_BSD * (1 + scale) + shift).astype(x_BSD.dtype), gate


class Einsum(nn.Module):
  """A weight `w` applied by an einsum in the dtype of its input."""

  shape: tuple[int, ...]
  init: nn.initializers.Initializer

  @nn.compact
  def __call__(self, equation, x):
    w = self.param("w", self.init, self.shape)
    return jnp.einsum(equation, x, w.astype(x.dtype))


class Attention(nn.Module):
  """Joint attention: every expert projects its own stream; under the mask, all streams attend to all."""

  configs: tuple[GemmaConfig, ...]

  @nn.compact
  def __call__(self, xs, angles, mask_BTS, cache):
    """Returns (list of outputs, one per expert or None, and the new keys and values [B, T, K, H])."""
    projected = [self._project(i, x) for i, x in enumerate(xs) if x is not None]
    q_BTNH, k_BTKH, v_BTKH = (jnp.concatenate(parts, axis=1) for parts in zip(*projected))
    q_BTNH = attention.rotate(q_BTNH, angles) * self.configs[0].head_dim**-0.5
    k_BTKH = attention.rotate(k_BTKH, angles)
    segments = ([] if cache is None else [cache]) + [(k_BTKH, v_BTKH)]
    encoded_BTNH = attention.attend(q_BTNH, segments, mask_BTS)
    outputs, start = [], 0
    for i, x in enumerate(xs):
      if x is None:
        outputs.append(None)
        continue
      stop = start + x.shape[1]
      outputs.append(self._combine(i, encoded_BTNH[:, start:stop]))
      start = stop
    return outputs, (k_BTKH, v_BTKH)

  def _project(self, index, x_BTD):
    """Returns queries [B, T, N, H], keys and values [B, T, K, H] of one expert."""
    c = self.configs[index]
    if c.num_kv_heads == c.num_heads:
      init = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=(0, 1))
      qkv = Einsum((3, c.num_kv_heads, c.width, c.head_dim), init, name=expert_name("qkv_einsum", index))
      return tuple(qkv("BTD,CKDH->CBTKH", x_BTD))
    init = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=(0,))
    q = Einsum((c.num_heads, c.width, c.head_dim), init, name=expert_name("q_einsum", index))
    init = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=(0, 1))
    kv = Einsum((2, c.num_kv_heads, c.width, c.head_dim), init, name=expert_name("kv_einsum", index))
    return q("BTD,NDH->BTNH", x_BTD), *kv("BTD,CKDH->CBTKH", x_BTD)

  def _combine(self, index, encoded_BTNH):
    """Returns the heads of one expert mapped back to its width, [B, T, D]."""
    c = self.configs[index]
    init = nn.initializers.lecun_normal(in_axis=(-3, -2), out_axis=-1)
    out = Einsum((c.num_heads, c.head_dim, c.width), init, name=expert_name("attn_vec_einsum", index))
    return out("BTNH,NHD->BTD", encoded_BTNH)


class FeedForward(nn.Module):
  """Gated GELU: `gating_einsum` holds the gate and the up projection, `linear` the down projection."""

  width: int
  mlp_dim: int

  @nn.compact
  def __call__(self, x_BTD):
    init = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=(0,))
    gating_2DF = self.param("gating_einsum", init, (2, self.width, self.mlp_dim)).astype(x_BTD.dtype)
    linear_FD = self.param("linear", nn.initializers.lecun_normal(), (self.mlp_dim, self.width))
    hidden_BTF = nn.gelu(x_BTD @ gating_2DF[0]) * (x_BTD @ gating_2DF[1])
    return hidden_BTF @ linear_FD.astype(x_BTD.dtype)


def _residual(x_BTD, y_BTD, gate_B1D):
  return x_BTD + (y_BTD if gate_B1D is None else y_BTD * gate_B1D)


class Block(nn.Module):
  """One layer of all experts in the form that `nn.scan` takes: the carry is the streams."""

  configs: tuple[GemmaConfig, ...]

  @nn.compact
  def __call__(self, xs, cache, angles, mask_BTS, conds):
    """Returns (streams, this layer's new keys and values); a stream that is None stays None."""
    live = [i for i, x in enumerate(xs) if x is not None]
    normed, gates = [None] * len(xs), [None] * len(xs)
    for i in live:
      normed[i], gates[i] = RMSNorm(name=expert_name("pre_attention_norm", i))(xs[i], conds[i])
    outputs, kv = Attention(self.configs, name="attn")(normed, angles, mask_BTS, cache)
    xs = [_residual(xs[i], outputs[i], gates[i]) if i in live else None for i in range(len(xs))]
    for i in live:
      normed_BTD, gate = RMSNorm(name=expert_name("pre_ffw_norm", i))(xs[i], conds[i])
      c = self.configs[i]
      y_BTD = FeedForward(c.width, c.mlp_dim, name=expert_name("mlp", i))(normed_BTD)
      xs[i] = _residual(xs[i], y_BTD, gate)
    return tuple(xs), kv


class Embedder(nn.Module):
  """The token table, scaled so that embeddings have unit variance."""

  vocab_size: int
  width: int

  def setup(self):
    init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0)
    self.input_embedding = self.param("input_embedding", init, (self.vocab_size, self.width))

  def __call__(self, tokens_BL):
    """Returns [B, L, D] in the table's dtype."""
    x_BLD = self.input_embedding[tokens_BL]
    return x_BLD * jnp.sqrt(self.width).astype(x_BLD.dtype)


class Gemma(nn.Module):
  """The layers of all experts, stacked along a leading axis as openpi stores them, and their last norms."""

  configs: tuple[GemmaConfig, ...]
  vocab_size: int
  dtype: jnp.dtype = jnp.float32
  unroll: bool = False

  def setup(self):
    depth = self.configs[0].depth
    self.embedder = Embedder(self.vocab_size, self.configs[0].width)
    layers = nn.scan(
      Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=depth,
      in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast), unroll=depth if self.unroll else 1)
    self.layers = layers(self.configs)
    self.final_norms = [RMSNorm(name=expert_name("final_norm", i)) for i in range(len(self.configs))]

  def embed(self, tokens_BL):
    """Returns the embeddings dtype[B, L, D] of int32[B, L] token ids."""
    return self.embedder(tokens_BL).astype(self.dtype)

  def __call__(self, xs, positions_BT, mask_BTS, *, conds=None, cache=None):
    """Returns (outputs, one per expert or None, and the keys and values of these tokens).

    Args:
      xs: per expert, [B, T_i, D_i] or None; the streams follow one another in this order.
      positions_BT: int32[B, T], T the sum of T_i.
      mask_BTS: bool[B, T, S]; S counts the cached tokens first, then these.
      conds: per expert, the adaptive norms' condition [B, D_i] or None.
      cache: (keys, values), each [depth, B, S - T, K, H], of tokens that came before.
    """
    conds = tuple(conds) if conds is not None else (None,) * len(xs)
    xs = tuple(None if x is None else x.astype(self.dtype) for x in xs)
    angles = attention.rotary_angles(positions_BT, self.configs[0].head_dim)
    xs, kv = self.layers(xs, cache, angles, mask_BTS, conds)
    outputs = [
      None if x is None else norm(x, cond)[0] for norm, x, cond in zip(self.final_norms, xs, conds)
    ]
    return outputs, kv
