"""The discrete head: each motion entry is one of 256 equal bins, learned by cross-entropy.

RoboVLMs writes the bins with the language model's last tokens; on pooled features they have a readout of their own.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.heads.base import HeadOutput, Readout, gripper_logits
from pi0rag_jax.models.heads.mlp import MlpConfig, MlpHead


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteConfig(MlpConfig):
  """Sizes of the discrete head; labels beyond the range fall into its outermost bins."""

  bins: int = 256
  # Of normalized labels: quantiles are within, z-scores want about (-3, 3).
  bin_range: tuple[float, float] = (-1.0, 1.0)

  def __post_init__(self):
    super().__post_init__()
    if self.bins < 2 or not self.bin_range[0] < self.bin_range[1]:
      raise Pi0RagError(f"head: {self.bins} bins over {self.bin_range}; allowed: 2 or more over (low, high)")

  @property
  def bin_width(self) -> float:
    return (self.bin_range[1] - self.bin_range[0]) / self.bins


class DiscreteReadout(nn.Module):
  """Logits of the bins, the centre of the likeliest one, and the gripper's logits."""

  config: DiscreteConfig

  @nn.compact
  def __call__(self, x) -> HeadOutput:
    c = self.config
    logits = Readout(c.readout_dims, (c.chunk, len(c.motion_index), c.bins), name="motion")(x)
    return HeadOutput(bin_centre(jnp.argmax(logits, axis=-1), c), gripper_logits(c, x), logits)


class DiscreteHead(MlpHead):
  """See `base` for the interface."""

  def make_readout(self) -> nn.Module:
    assert isinstance(self.config, DiscreteConfig)
    return DiscreteReadout(self.config)


def bin_index(values, config: DiscreteConfig):
  """Returns int32[...], the bin of each value."""
  index = jnp.floor((values - config.bin_range[0]) / config.bin_width)
  return jnp.clip(index, 0, config.bins - 1).astype(jnp.int32)


def bin_centre(index, config: DiscreteConfig):
  """Returns float32[...], the value in the middle of each bin."""
  return config.bin_range[0] + (index.astype(jnp.float32) + 0.5) * config.bin_width
