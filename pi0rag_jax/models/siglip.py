"""The SigLIP image tower of PaliGemma: a pre-norm vision transformer that keeps every patch token."""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import placement, remat
from pi0rag_jax.models.attention import Kernel
from pi0rag_jax.models.dense import Dense

ATTENTION, MLP = "MultiHeadDotProductAttention_0", "MlpBlock_0"


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
  """Sizes of an image tower; patches are square and do not overlap."""

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  patch_size: int = 14
  # openpi starts a fresh head at zero, since it always loads trained weights; a policy trained from scratch
  # sees more of its images at the start with False.
  zero_head: bool = True

  def __post_init__(self):
    if self.width % self.num_heads:
      raise Pi0RagError(f"siglip: width {self.width} is not a multiple of num_heads {self.num_heads}")

  def num_tokens(self, image_size) -> int:
    """Returns the number of tokens of an image of `image_size` (height, width) in pixels."""
    height, width = image_size
    if height < self.patch_size or width < self.patch_size:
      raise Pi0RagError(f"siglip: image_size {height}x{width} is below one {self.patch_size}-pixel patch")
    return (height // self.patch_size) * (width // self.patch_size)


class PatchEmbedding(nn.Module):
  """A convolution whose stride is its kernel, written as one matrix product (a CPU convolves far slower)."""

  width: int
  patch_size: int

  @nn.compact
  def __call__(self, image_BHWC):
    """Returns float32[B, S, D], patches in row-major order; rest pixels at bottom and right are dropped."""
    p = self.patch_size
    B, height, width, C = image_BHWC.shape
    rows, columns = height // p, width // p
    kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=(0, 1, 2)), (p, p, C, self.width))
    bias = self.param("bias", nn.initializers.zeros, (self.width,))
    patches = image_BHWC[:, : rows * p, : columns * p].reshape(B, rows, p, columns, p, C)
    patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(B, rows * columns, p * p * C)
    return patches.astype(jnp.float32) @ kernel.reshape(-1, self.width).astype(jnp.float32) + bias


class MlpBlock(nn.Module):
  """Dense, tanh-approximated GELU, dense."""

  mlp_dim: int

  @nn.compact
  def __call__(self, x_BSD):
    dense = functools.partial(
      Dense, kernel_init=nn.initializers.xavier_uniform(), bias_init=nn.initializers.normal(1e-6))
    hidden_BSF = nn.gelu(dense(self.mlp_dim)(x_BSD))
    return dense(x_BSD.shape[-1])(hidden_BSF)


class PackedAttention(nn.Module):
  """Self-attention whose queries, keys and values come from one matrix; see `packing`."""

  num_heads: int
  kernel: Kernel

  @nn.compact
  def __call__(self, x_BSD):
    B, S, D = x_BSD.shape
    qkv_BS3NH = Dense(3 * D, name="qkv")(x_BSD).reshape(B, S, 3, self.num_heads, -1)
    q_BSNH, k_BSNH, v_BSNH = (qkv_BS3NH[:, :, i] for i in range(3))
    y_BSNH = self.kernel.over_all(q_BSNH, k_BSNH, v_BSNH)
    return Dense(D, name="out")(y_BSNH.reshape(B, S, D))


class EncoderBlock(nn.Module):
  """One pre-norm layer in the form that `nn.scan` takes: the carry is the tokens."""

  config: SiglipConfig
  dtype: jnp.dtype
  packed: bool = False
  kernel: Kernel = Kernel()

  @nn.compact
  def __call__(self, x_BSD, _):
    x_BSD = placement.by_example(x_BSD)
    y_BSD = nn.LayerNorm(dtype=self.dtype)(x_BSD)
    if self.packed:
      x_BSD = x_BSD + PackedAttention(self.config.num_heads, self.kernel, name=ATTENTION)(y_BSD)
    else:
      attention = nn.MultiHeadDotProductAttention(
        num_heads=self.config.num_heads, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(),
        deterministic=True, name=ATTENTION)
      x_BSD = x_BSD + attention(y_BSD, y_BSD)
    y_BSD = nn.LayerNorm(dtype=self.dtype)(x_BSD)
    return placement.by_example(x_BSD + MlpBlock(self.config.mlp_dim, name=MLP)(y_BSD)), None


class Encoder(nn.Module):
  """The layers and the last norm; the layers' parameters are stacked as openpi stores them, or apart if packed."""

  config: SiglipConfig
  dtype: jnp.dtype
  unroll: bool
  remat: str
  packed: bool
  kernel: Kernel

  @nn.compact
  def __call__(self, x_BSD):
    if self.packed:
      for i in range(self.config.depth):
        layer = EncoderBlock(self.config, self.dtype, packed=True, kernel=self.kernel, name=f"encoderblock_{i}")
        x_BSD, _ = layer(x_BSD, None)
      return nn.LayerNorm(dtype=self.dtype, name="encoder_norm")(x_BSD)
    layers = nn.scan(
      remat.wrap(EncoderBlock, self.remat), variable_axes={"params": 0}, split_rngs={"params": True},
      length=self.config.depth, unroll=self.config.depth if self.unroll else 1)
    x_BSD, _ = layers(self.config, self.dtype, name="encoderblock")(x_BSD, None)
    return nn.LayerNorm(dtype=self.dtype, name="encoder_norm")(x_BSD)


class Siglip(nn.Module):
  """Image to tokens of `out_dim`, without pooling or a class token.

  Patches and positions are computed in float32 and cast to `dtype` after, as in openpi.
  """

  config: SiglipConfig
  out_dim: int
  dtype: jnp.dtype = jnp.float32
  unroll: bool = False
  remat: str = "none"
  packed: bool = False
  kernel: Kernel = Kernel()  # of packed attention

  @nn.compact
  def __call__(self, image_BHWC):
    """Returns dtype[B, S, out_dim] for float32[B, H, W, 3] in [-1, 1]."""
    width = self.config.width
    x_BSD = PatchEmbedding(width, self.config.patch_size, name="embedding")(image_BHWC)
    shape = (1, x_BSD.shape[1], width)
    position_1SD = self.param("pos_embedding", nn.initializers.normal(width**-0.5), shape)
    x_BSD = (x_BSD + position_1SD).astype(self.dtype)
    encoder = Encoder(self.config, self.dtype, self.unroll, self.remat, self.packed, self.kernel, name="Transformer")
    x_BSD = encoder(x_BSD)
    head_init = nn.initializers.zeros if self.config.zero_head else nn.initializers.lecun_normal()
    return nn.Dense(self.out_dim, dtype=self.dtype, kernel_init=head_init, name="head")(x_BSD)
