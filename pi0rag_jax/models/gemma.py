"""Gemma as a mixture of experts: streams of tokens with their own weights that share one attention.

Expert 0 is PaliGemma's language model, expert 1 the action expert; parameters of expert i > 0 end in `_i`.
Any subset of the streams can be given, so the same module is the training forward pass over both, the prefix
pass alone, and the suffix pass over a cached prefix.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import attention, placement, remat
from pi0rag_jax.models.dense import Dense
from pi0rag_jax.models.lora import Einsum, LoraConfig, adapter_params
from pi0rag_jax.typing import Array

RMS_EPSILON = 1e-6
# By layer: stacked along a leading axis, or a tuple.
KeysValues = tuple[Any, Any]
# How the attention applies its weights; the names are those of the parameters of expert 0. C counts the
# projections that one weight stacks.
EQUATIONS = {
  "q_einsum": "BTD,NDH->BTNH",
  "kv_einsum": "BTD,CKDH->CBTKH",
  "qkv_einsum": "BTD,CKDH->CBTKH",
  "attn_vec_einsum": "BTNH,NHD->BTD",
}
# Of packed parameters, see `packing`: matrices, with all heads of queries, keys and values side by side.
PACKED_QKV, PACKED_OUT = "qkv", "out"


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
  """Sizes of one expert; experts of one mixture share depth, heads and head_dim."""

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  # Adapters beside the weights of the attention and of the feed-forward network; None for none.
  lora_attn: LoraConfig | None = None
  lora_ffn: LoraConfig | None = None

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise Pi0RagError(
        f"gemma: num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
    if self.head_dim % 2:
      raise Pi0RagError(f"gemma: head_dim {self.head_dim} is odd; rotary positions need an even one")


def expert_name(name: str, index: int) -> str:
  """Returns the parameter name of expert `index`: the first has no suffix."""
  return name if index == 0 else f"{name}_{index}"


@flax.struct.dataclass
class Modulations:
  """What a condition makes of the adaptive norms: scale, shift and gate side by side, X = 3 D wide.

  Each is a tuple by expert, with None for an expert without a condition.
  """

  layers: tuple[Any, ...]  # [B, depth, 2, X], of the norms before attention and feed-forward network
  last: tuple[Any, ...]  # [B, X], of the norm after the last layer


class RMSNorm(nn.Module):
  """Root-mean-square norm in float32; adaptive, with a gate, when a modulation is given."""

  width: int
  dtype: jnp.dtype = jnp.float32  # of the modulation

  def setup(self):
    # Has parameters where it is used: an adaptive norm has no other ones.
    self.Dense_0 = nn.Dense(3 * self.width, dtype=self.dtype, kernel_init=nn.initializers.zeros)

  def modulate(self, cond_BD):
    """Returns the modulation [B, 3 D] that a condition makes."""
    return self.Dense_0(cond_BD)

  @nn.compact
  def __call__(self, x_BSD, modulation_BX=None):
    """Returns (normed x, gate[B, 1, D] or None for the residual that follows)."""
    x32_BSD = x_BSD.astype(jnp.float32)
    variance = jnp.mean(jnp.square(x32_BSD), axis=-1, keepdims=True)
    normed_BSD = x32_BSD / jnp.sqrt(variance + RMS_EPSILON)
    if modulation_BX is None:
      scale = self.param("scale", nn.initializers.zeros, (self.width,))
      return (normed_BSD * (1 + scale)).astype(x_BSD.dtype), None
    scale, shift, gate = jnp.split(modulation_BX[:, None], 3, axis=-1)
    return (normed_BSD * (1 + scale) + shift).astype(x_BSD.dtype), gate


class Attention(nn.Module):
  """Joint attention: every expert projects its own stream; under the mask, all streams attend to all."""

  configs: tuple[GemmaConfig, ...]
  rotary_dtype: jnp.dtype | None = None
  packed: bool = False
  kernel: attention.Kernel = attention.Kernel()

  @nn.compact
  def __call__(self, xs, angles, mask_BTS, cache, *, keys_only: bool = False):
    """Returns (list of outputs, one per expert or None, and the new keys and values [B, T, K, H])."""
    projected = [self._project(i, x) for i, x in enumerate(xs) if x is not None]
    q_BTNH, k_BTKH, v_BTKH = (jnp.concatenate(parts, axis=1) for parts in zip(*projected))
    k_BTKH = attention.rotate(k_BTKH, angles)
    if keys_only:
      return [None] * len(xs), (k_BTKH, v_BTKH)
    q_BTNH = attention.rotate(q_BTNH, angles, dtype=self.rotary_dtype) * self.configs[0].head_dim**-0.5
    segments = ([] if cache is None else [cache]) + [(k_BTKH, v_BTKH)]
    attend = self.kernel.over_segments if self.packed else attention.attend
    encoded_BTNH = attend(q_BTNH, segments, mask_BTS)
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
    if self.packed:
      return self._project_packed(index, x_BTD)
    if c.num_kv_heads == c.num_heads:
      return tuple(self._apply("qkv_einsum", index, (3, c.num_kv_heads, c.width, c.head_dim), x_BTD))
    q_BTNH = self._apply("q_einsum", index, (c.num_heads, c.width, c.head_dim), x_BTD)
    return q_BTNH, *self._apply("kv_einsum", index, (2, c.num_kv_heads, c.width, c.head_dim), x_BTD)

  def _project_packed(self, index, x_BTD):
    c = self.configs[index]
    heads = (c.num_heads, c.num_kv_heads, c.num_kv_heads)
    y_BTX = self._matrix(PACKED_QKV, index, sum(heads) * c.head_dim)(x_BTD)
    y_BTXH = y_BTX.reshape(*x_BTD.shape[:2], sum(heads), c.head_dim)
    return tuple(jnp.split(y_BTXH, (heads[0], heads[0] + heads[1]), axis=2))

  def _combine(self, index, encoded_BTNH):
    """Returns the heads of one expert mapped back to its width, [B, T, D]."""
    c = self.configs[index]
    if self.packed:
      return self._matrix(PACKED_OUT, index, c.width)(encoded_BTNH.reshape(*encoded_BTNH.shape[:2], -1))
    return self._apply("attn_vec_einsum", index, (c.num_heads, c.head_dim, c.width), encoded_BTNH)

  def _matrix(self, name, index, features):
    return Dense(features, use_bias=False, name=expert_name(name, index))

  def _apply(self, name, index, shape, x):
    """Returns one of EQUATIONS applied with the weight, and the adapter, of one expert."""
    if name == "attn_vec_einsum":
      init = nn.initializers.lecun_normal(in_axis=(-3, -2), out_axis=-1)
    else:
      init = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=tuple(range(len(shape) - 2)))
    weight = Einsum(shape, init, self.configs[index].lora_attn, name=expert_name(name, index))
    return weight(EQUATIONS[name], x)


class FeedForward(nn.Module):
  """Gated GELU: `gating_einsum` holds the gate and the up projection, `linear` the down projection.

  As in openpi, the adapters here have no scale: alpha and rslora do nothing.
  """

  width: int
  mlp_dim: int
  lora: LoraConfig | None = None
  packed: bool = False

  @nn.compact
  def __call__(self, x_BTD):
    if self.packed:
      return self._packed(x_BTD)
    init = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=(0,))
    gating_2DF, gating_lora = self._weight("gating_einsum", init, (2, self.width, self.mlp_dim))
    linear_FD, linear_lora = self._weight("linear", nn.initializers.lecun_normal(), (self.mlp_dim, self.width))
    gate_BTF, up_BTF = (_dot(x_BTD, gating_2DF[i], [factor[i] for factor in gating_lora]) for i in range(2))
    return _dot(nn.gelu(gate_BTF) * up_BTF, linear_FD, linear_lora)

  def _packed(self, x_BTD):
    gate_BTF, up_BTF = jnp.split(Dense(2 * self.mlp_dim, use_bias=False, name="gating")(x_BTD), 2, axis=-1)
    return Dense(self.width, use_bias=False, name="linear")(nn.gelu(gate_BTF) * up_BTF)

  def _weight(self, name, init, shape):
    """Returns a weight and the factors of its adapter, none without one."""
    w = self.param(name, init, shape)
    return w, () if self.lora is None else adapter_params(self, f"{name}_", shape, self.lora)


def _dot(x, w, adapter):
  """Returns x @ w, plus x @ a @ b for an adapter (a, b), in the dtype of x."""
  y = x @ w.astype(x.dtype)
  if not adapter:
    return y
  a, b = adapter
  return y + x @ a.astype(x.dtype) @ b.astype(x.dtype)


def _residual(x_BTD, y_BTD, gate_B1D):
  return x_BTD + (y_BTD if gate_B1D is None else y_BTD * gate_B1D)


class Block(nn.Module):
  """One layer of all experts in the form that `nn.scan` takes: the carry is the streams."""

  configs: tuple[GemmaConfig, ...]
  dtype: jnp.dtype
  rotary_dtype: jnp.dtype | None = None
  packed: bool = False
  kernel: attention.Kernel = attention.Kernel()

  def setup(self):
    self.attention_norms, self.feed_forward_norms = (
      [RMSNorm(c.width, self.dtype, name=expert_name(name, i)) for i, c in enumerate(self.configs)]
      for name in ("pre_attention_norm", "pre_ffw_norm"))
    self.attn = Attention(self.configs, self.rotary_dtype, self.packed, self.kernel)
    self.feed_forwards = [
      FeedForward(c.width, c.mlp_dim, c.lora_ffn, self.packed, name=expert_name("mlp", i))
      for i, c in enumerate(self.configs)]

  def modulate(self, carry, conds):
    """Returns (carry, the modulations of this layer's norms: per expert [B, 2, X] or None)."""
    norms = zip(self.attention_norms, self.feed_forward_norms)
    return carry, tuple(None if cond is None else jnp.stack([norm.modulate(cond) for norm in pair], axis=1)
                        for pair, cond in zip(norms, conds))

  def __call__(self, xs, cache, angles, mask_BTS, modulations, *, keys_only: bool = False):
    """Returns (streams, this layer's new keys and values); a stream that is None stays None.

    Args:
      modulations: of this layer, as `modulate` returns them.
      keys_only: static; nothing but keys and values is computed, and all streams that come out are None.
    """
    xs = placement.by_example(xs)
    live = [i for i, x in enumerate(xs) if x is not None]
    of_attention, of_feed_forward = ([None if m is None else m[:, i] for m in modulations] for i in range(2))
    normed: list[Array | None] = [None] * len(xs)
    gates: list[Array | None] = [None] * len(xs)
    for i in live:
      normed[i], gates[i] = self.attention_norms[i](xs[i], of_attention[i])
    outputs, kv = self.attn(normed, angles, mask_BTS, cache, keys_only=keys_only)
    if keys_only:
      return tuple(outputs), kv
    xs = [_residual(xs[i], outputs[i], gates[i]) if i in live else None for i in range(len(xs))]
    for i in live:
      normed_BTD, gate = self.feed_forward_norms[i](xs[i], of_feed_forward[i])
      xs[i] = _residual(xs[i], self.feed_forwards[i](normed_BTD), gate)
    return placement.by_example(tuple(xs)), kv


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

  def decode(self, x_BTD):
    """Returns the logits [B, T, vocabulary] of the same table, in the wider dtype of the two."""
    return jnp.einsum("BTD,VD->BTV", x_BTD, self.input_embedding)


class Gemma(nn.Module):
  """The layers of all experts and their last norms.

  Their parameters are stacked along a leading axis, as openpi stores them, or one layer apart from the other if packed.
  """

  configs: tuple[GemmaConfig, ...]
  vocab_size: int
  dtype: jnp.dtype = jnp.float32
  unroll: bool = False
  # Of the rotated queries; None stands for `dtype`. pi0-FAST leaves them in float32.
  rotary_dtype: jnp.dtype | None = None
  remat: str = "none"
  packed: bool = False
  kernel: attention.Kernel = attention.Kernel()  # of packed attention

  def setup(self):
    depth = self.configs[0].depth
    self.embedder = Embedder(self.vocab_size, self.configs[0].width)
    self.final_norms = [
      RMSNorm(c.width, self.dtype, name=expert_name("final_norm", i)) for i, c in enumerate(self.configs)]
    self.layers: Any
    if self.packed:
      block = functools.partial(Block, self.configs, self.dtype, self.rotary_dtype, packed=True, kernel=self.kernel)
      self.layers = [block() for _ in range(depth)]
      return
    common: dict[str, Any] = {
      "variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": depth,
      "unroll": depth if self.unroll else 1}
    in_axes = (0, nn.broadcast, nn.broadcast, 1)
    methods: Any = {  # flax declares a list of names
      "__call__": {**common, "in_axes": in_axes}, "modulate": {**common, "in_axes": nn.broadcast, "out_axes": 1}}
    layers = nn.scan(remat.wrap(Block, self.remat), methods=methods)
    self.layers = layers(self.configs, self.dtype, self.rotary_dtype)

  def embed(self, tokens_BL):
    """Returns the embeddings dtype[B, L, D] of int32[B, L] token ids."""
    return self.embedder(tokens_BL).astype(self.dtype)

  def decode(self, x_BTD):
    """Returns the logits [B, T, vocabulary] of the outputs of expert 0."""
    return self.embedder.decode(x_BTD)

  def modulate(self, conds) -> Modulations:
    """Returns what the conditions, per expert [B, D_i] or None, make of all adaptive norms."""
    conds = tuple(conds)
    last = tuple(None if cond is None else norm.modulate(cond) for norm, cond in zip(self.final_norms, conds))
    if not self.packed:
      return Modulations(self.layers.modulate(None, conds)[1], last)
    layers = [layer.modulate(None, conds)[1] for layer in self.layers]
    return Modulations(jax.tree.map(lambda *parts: jnp.stack(parts, axis=1), *layers), last)

  def __call__(
    self, xs, positions_BT, mask_BTS, *, conds=None, modulations: Modulations | None = None, cache=None,
    keys_only: bool = False
  ) -> tuple[list[Any], KeysValues]:
    """Returns (outputs, an array where there is a stream and else None, and the keys and values of these tokens).

    Args:
      xs: per expert, [B, T_i, D_i] or None; the streams follow one another in this order.
      positions_BT: int32[B, T], T the sum of T_i.
      mask_BTS: bool[B, T, S]; S counts the cached tokens first, then these.
      conds: per expert, the adaptive norms' condition [B, D_i] or None.
      modulations: what `modulate` made of the conditions, for a caller who knew them before; a batch of 1 serves all.
      cache: (keys, values), each [depth, B, S - T, K, H], of tokens that came before; packed, each is a tuple of
        so many arrays.
      keys_only: static; keys and values are all that is wanted. Packed layers then skip what only the outputs need.
    """
    if modulations is None:
      modulations = self.modulate((None,) * len(xs) if conds is None else conds)
    xs = tuple(None if x is None else x.astype(self.dtype) for x in xs)
    angles = attention.rotary_angles(positions_BT, self.configs[0].head_dim)
    kv: Any
    if self.packed:
      xs, kv = self._run_packed(xs, cache, angles, mask_BTS, modulations.layers, keys_only)
    else:
      xs, kv = self.layers(xs, cache, angles, mask_BTS, modulations.layers)
    outputs = [
      None if x is None else norm(x, last)[0] for norm, x, last in zip(self.final_norms, xs, modulations.last)
    ]
    return outputs, kv

  def _run_packed(self, xs, cache, angles, mask_BTS, modulations, keys_only):
    new = []
    for i, layer in enumerate(self.layers):
      here = None if cache is None else (cache[0][i], cache[1][i])
      own = jax.tree.map(lambda table_BL2X, i=i: table_BL2X[:, i], modulations)
      xs, kv = layer(xs, here, angles, mask_BTS, own, keys_only=keys_only and i == len(self.layers) - 1)
      new.append(kv)
    return xs, tuple(zip(*new))
