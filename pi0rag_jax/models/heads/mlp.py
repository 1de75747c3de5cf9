"""The fully connected head: an answer from one step's features alone, without a memory of those before."""

import dataclasses

import flax.linen as nn

from pi0rag_jax.models.heads.base import ActionReadout, FeatureInput, HeadConfig, HeadOutput


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlpConfig(HeadConfig):
  """Sizes of the fully connected head; its window matters to training batches only."""

  hidden_dims: tuple[int, ...] = (1024, 512)
  window: int = 1


class MlpTrunk(nn.Module):
  """Dense layers with ReLU and dropout after each."""

  hidden_dims: tuple[int, ...]
  dropout: float

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    for width in self.hidden_dims:
      x = nn.relu(nn.Dense(width)(x))
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return x


class MlpHead(nn.Module):
  """See `base` for the interface."""

  config: MlpConfig

  def setup(self):
    self.inputs = FeatureInput(self.config)
    self.trunk = MlpTrunk(self.config.hidden_dims, self.config.dropout)
    self.readout = self.make_readout()

  def make_readout(self) -> nn.Module:
    return ActionReadout(self.config)

  def __call__(self, features_BWD, mask_BW, *, train: bool = False) -> HeadOutput:
    """Returns the answers [B, W, T, ...]; the mask changes nothing, since steps do not meet."""
    return self.readout(self.trunk(self.inputs(features_BWD), train=train))

  def init_state(self, batch: int) -> dict:
    """Returns the empty state: nothing is carried."""
    return {}

  def step(self, state: dict, features_BD):
    """Returns (the empty state, the answer [B, T, ...])."""
    return state, self.readout(self.trunk(self.inputs(features_BD)))
