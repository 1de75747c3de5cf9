"""The GPT-style head: a causal transformer over the steps of the history.

A stream carries the features of its last `window` steps and computes the window anew at each step. Cached keys and
values would not do: once the oldest step leaves, every position, and in deeper layers every value, is another.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.heads.base import ActionReadout, FeatureInput, HeadConfig, HeadOutput


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(HeadConfig):
  """Sizes of the transformer head; dropout is in the attention and after each half of a layer."""

  width: int = 512
  layers: int = 4
  num_heads: int = 8
  mlp_ratio: int = 4

  def __post_init__(self):
    super().__post_init__()
    if self.width % self.num_heads:
      raise Pi0RagError(f"head: width {self.width} is not a multiple of num_heads {self.num_heads}")

  @staticmethod
  def counts() -> tuple[str, ...]:
    return "width", "layers", "num_heads", "mlp_ratio"


class Block(nn.Module):
  """One pre-norm layer."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, x_BWD, mask_B1WW, *, train: bool):
    c = self.config
    y_BWD = nn.LayerNorm()(x_BWD)
    y_BWD = nn.MultiHeadDotProductAttention(c.num_heads, dropout_rate=c.dropout, deterministic=not train)(
      y_BWD, mask=mask_B1WW)
    x_BWD = x_BWD + nn.Dropout(c.dropout, deterministic=not train)(y_BWD)
    y_BWD = nn.Dense(c.width)(nn.gelu(nn.Dense(c.mlp_ratio * c.width)(nn.LayerNorm()(x_BWD))))
    return x_BWD + nn.Dropout(c.dropout, deterministic=not train)(y_BWD)


class TransformerHead(nn.Module):
  """See `base` for the interface."""

  config: TransformerConfig

  def setup(self):
    c = self.config
    self.inputs = FeatureInput(c)
    self.embed = nn.Dense(c.width)
    self.positions = self.param("positions", nn.initializers.normal(0.02), (c.window, c.width))
    self.blocks = [Block(c) for _ in range(c.layers)]
    self.norm = nn.LayerNorm()
    self.readout = ActionReadout(c)

  def __call__(self, features_BWD, mask_BW, *, train: bool = False) -> HeadOutput:
    """Returns the answers [B, W, T, ...]; W is at most the configured window.

    Positions count valid steps, so a history is the same whether it is padded in front or behind.
    """
    steps = features_BWD.shape[1]
    if steps > self.config.window:
      raise Pi0RagError(f"history of {steps} steps, the transformer head has positions for {self.config.window}")
    x_BWD = self.embed(self.inputs(features_BWD))
    x_BWD = x_BWD + self.positions[jnp.maximum(jnp.cumsum(mask_BW, axis=1) - 1, 0)]
    causal_WW = jnp.tril(jnp.ones((steps, steps), bool))
    # A step of padding sees itself alone: a row without any key would be not a number.
    seen_BWW = (causal_WW & mask_BW[:, None]) | jnp.eye(steps, dtype=bool)
    for block in self.blocks:
      x_BWD = block(x_BWD, seen_BWW[:, None], train=train)
    return self.readout(self.norm(x_BWD))

  def init_state(self, batch: int) -> dict:
    """Returns `rows` float[B, W, D + P], the newest last, and `count` int32[B], the valid ones."""
    c = self.config
    return {"rows": jnp.zeros((batch, c.window, c.input_dim)), "count": jnp.zeros(batch, jnp.int32)}

  def step(self, state: dict, features_BD):
    """Returns (the next state, the answer [B, T, ...] at the newest step)."""
    rows_BWD = jnp.concatenate([state["rows"][:, 1:], features_BD[:, None].astype(jnp.float32)], axis=1)
    window = rows_BWD.shape[1]
    count_B = jnp.minimum(state["count"] + 1, window)
    out = self(rows_BWD, jnp.arange(window) >= window - count_B[:, None])
    return {"rows": rows_BWD, "count": count_B}, HeadOutput(out.motion[:, -1], out.gripper_logits[:, -1])
