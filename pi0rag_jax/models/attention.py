"""The attention arithmetic of Gemma: masks, rotary positions, grouped heads over several key segments."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# What openpi writes over a masked logit: large, yet finite, so that a row with no valid key stays finite.
MASKED_LOGIT = -2.3819763e38
ROPE_BASE = 10_000


def attention_mask(mask_BS, ar_mask):
  """Returns bool[B, S, S]: may token i (second axis) attend to token j (last axis)?

  Args:
    mask_BS: bool[B, S], which tokens are real.
    ar_mask: bool or int [S] or [B, S], True where a new block starts; a token sees its own block and the ones
      before.
  """
  block_BS = jnp.cumsum(jnp.asarray(ar_mask, jnp.int32), axis=-1)
  order_BSS = block_BS[..., None, :] <= block_BS[..., :, None]
  return order_BSS & mask_BS[:, None, :] & mask_BS[:, :, None]


def token_positions(mask_BS):
  """Returns int32[B, S]: the number of valid tokens before each one; -1 where none came yet."""
  return jnp.cumsum(mask_BS, axis=1, dtype=jnp.int32) - 1


def rotary_angles(positions_BT, head_dim: int):
  """Returns (sin, cos), each float32[B, T, 1, head_dim / 2], of the rotary embedding at integer positions.

  The barrier keeps the compiler from multiplying by the reciprocal instead of dividing: at position 500 that
  last bit is worth 5e-5 of a key, more than the whole model's distance from openpi.
  """
  half = head_dim // 2
  timescale = (float(ROPE_BASE) ** (2 * np.arange(half) / head_dim)).astype(np.float32)
  shape = (*positions_BT.shape, half)
  positions = jnp.broadcast_to(positions_BT[..., None].astype(jnp.float32), shape)
  radians = positions / jax.lax.optimization_barrier(jnp.broadcast_to(timescale, shape))
  return jnp.sin(radians)[:, :, None], jnp.cos(radians)[:, :, None]


def rotate(x_BTNH, angles, *, dtype=None):
  """Returns x rotated by `rotary_angles`, same shape, in `dtype` (None: that of x); computed in float32.

  Dimension i of the first half is paired with dimension i of the second, as in Gemma.
  """
  sin, cos = angles
  first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(dtype or x_BTNH.dtype)


@dataclasses.dataclass(frozen=True)
class Kernel:
  """How packed layers attend: the same mathematics, by the operations that suit a device."""

  implementation: Any = "xla"  # of jax.nn.dot_product_attention
  # Keys and values that are cached are joined with the new ones, and heads that share keys are rows of one product: an
  # accelerator, which mostly waits for kernels to start, then has half as many.
  joined: bool = False

  def over_all(self, q_BTNH, k_BSKH, v_BSKH, mask_BTS=None, *, scale: float | None = None):
    """Returns the attention output [B, T, N, H] over one segment; `scale` None is the root of the head's width."""
    return jax.nn.dot_product_attention(
      q_BTNH, k_BSKH, v_BSKH, mask=None if mask_BTS is None else mask_BTS[:, None], scale=scale,
      implementation=self.implementation)

  def over_segments(self, q_BTNH, segments, mask_BTS):
    """Returns what `attend` does."""
    if len(segments) > 1 and not self.joined:
      return attend(q_BTNH, segments, mask_BTS)
    k_BSKH, v_BSKH = (parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1) for parts in zip(*segments))
    if self.joined and self.implementation == "xla":
      return attend_in_rows(q_BTNH, k_BSKH, v_BSKH, mask_BTS)
    return self.over_all(q_BTNH.astype(k_BSKH.dtype), k_BSKH, v_BSKH, mask_BTS, scale=1.0)


def attend(q_BTNH, segments, mask_BTS):
  """Returns the attention output [B, T, N, H] over several key/value segments, as if they were concatenated.

  A segment keeps its own arrays, so that a cache shared by many queries is neither copied nor tiled.

  Args:
    q_BTNH: queries, already scaled; N is a multiple of the number of key heads. They may be of a wider dtype
      than keys and values, which set the dtype of the output.
    segments: sequence of (keys [B, S_i, K, H], values [B, S_i, K, H]).
    mask_BTS: bool[B, T, sum of S_i], True where a query may look.
  """
  B, T, N, H = q_BTNH.shape
  q_BTKGH = q_BTNH.reshape(B, T, segments[0][0].shape[2], -1, H)
  logits = [
    jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    for k_BSKH, _ in segments
  ]
  logits_BKGTS = jnp.concatenate(logits, axis=-1)
  logits_BKGTS = jnp.where(mask_BTS[:, None, None], logits_BKGTS, MASKED_LOGIT)
  weights_BKGTS = jax.nn.softmax(logits_BKGTS, axis=-1).astype(segments[0][1].dtype)
  out_BTKGH, start = 0.0, 0
  for _, v_BSKH in segments:
    part_BKGTS = weights_BKGTS[..., start : start + v_BSKH.shape[1]]
    out_BTKGH += jnp.einsum("BKGTS,BSKH->BTKGH", part_BKGTS, v_BSKH)
    start += v_BSKH.shape[1]
  return out_BTKGH.reshape(B, T, N, H)


def attend_in_rows(q_BTNH, k_BSKH, v_BSKH, mask_BTS):
  """Returns what `attend` does over one segment, with all queries of the heads that share keys as rows of one matrix.

  With one key head, as Gemma has, nothing is transposed. R counts the rows.
  """
  B, T, N, H = q_BTNH.shape
  S, K = k_BSKH.shape[1:3]
  q_BKRH = q_BTNH.reshape(B, T, K, -1, H).transpose(0, 2, 1, 3, 4).reshape(B, K, -1, H)
  logits_BKRS = jnp.einsum("BKRH,BSKH->BKRS", q_BKRH, k_BSKH, preferred_element_type=jnp.float32)
  logits_BKTGS = jnp.where(mask_BTS[:, None, :, None], logits_BKRS.reshape(B, K, T, -1, S), MASKED_LOGIT)
  weights_BKRS = jax.nn.softmax(logits_BKTGS, axis=-1).astype(v_BSKH.dtype).reshape(B, K, -1, S)
  out_BKRH = jnp.einsum("BKRS,BSKH->BKRH", weights_BKRS, v_BSKH)
  return out_BKRH.reshape(B, K, T, -1, H).transpose(0, 2, 1, 3, 4).reshape(B, T, N, H)
