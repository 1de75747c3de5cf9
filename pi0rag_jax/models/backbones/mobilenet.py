"""MobileNetV3-small without its classifier: pictures to 576 channels, 0.93 M parameters.

Modules are named and ordered as in torchvision, so that its weights can be taken over (`mobilenet_torch`).

Source: Howard et al., "Searching for MobileNetV3" (arXiv 1905.02244), table 2.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn

EPSILON = 1e-3  # of the batch norms, as the paper's and torchvision's networks have it
STEM_CHANNELS, CHANNELS = 16, 576
# Squeezed channels are a quarter, rounded to a multiple of eight but never by more than a tenth down.
_SQUEEZE, _DIVISOR = 4, 8


@dataclasses.dataclass(frozen=True)
class Bottleneck:
  """One row of the paper's table."""

  kernel: int
  expanded: int
  out: int
  squeeze: bool
  hard_swish: bool  # or ReLU
  stride: int


BLOCKS = (
  Bottleneck(3, 16, 16, True, False, 2),
  Bottleneck(3, 72, 24, False, False, 2),
  Bottleneck(3, 88, 24, False, False, 1),
  Bottleneck(5, 96, 40, True, True, 2),
  Bottleneck(5, 240, 40, True, True, 1),
  Bottleneck(5, 240, 40, True, True, 1),
  Bottleneck(5, 120, 48, True, True, 1),
  Bottleneck(5, 144, 48, True, True, 1),
  Bottleneck(5, 288, 96, True, True, 2),
  Bottleneck(5, 576, 96, True, True, 1),
  Bottleneck(5, 576, 96, True, True, 1),
)


def squeezed_channels(channels: int) -> int:
  """Returns the width of a squeeze-and-excitation layer."""
  wanted = channels // _SQUEEZE
  rounded = max(_DIVISOR, (wanted + _DIVISOR // 2) // _DIVISOR * _DIVISOR)
  return rounded + _DIVISOR if rounded < 0.9 * wanted else rounded


class ConvNorm(nn.Module):
  """Convolution without bias, padded by half its kernel on all sides, batch norm, activation."""

  features: int
  kernel: int = 1
  stride: int = 1
  depthwise: bool = False
  activation: Callable | None = None

  @nn.compact
  def __call__(self, x_BHWC):
    conv = nn.Conv(
      self.features, (self.kernel, self.kernel), self.stride, padding=self.kernel // 2, use_bias=False,
      feature_group_count=self.features if self.depthwise else 1, name="conv",
      kernel_init=nn.initializers.variance_scaling(2.0, "fan_in", "normal"))
    x_BHWC = nn.BatchNorm(True, epsilon=EPSILON, name="norm")(conv(x_BHWC))
    return x_BHWC if self.activation is None else self.activation(x_BHWC)


class SqueezeExcitation(nn.Module):
  """Scales channels by what their means over the picture say."""

  @nn.compact
  def __call__(self, x_BHWC):
    channels = x_BHWC.shape[-1]
    mean_BC = x_BHWC.mean(axis=(1, 2))
    hidden_BC = nn.relu(nn.Dense(squeezed_channels(channels), name="fc1")(mean_BC))
    return x_BHWC * nn.hard_sigmoid(nn.Dense(channels, name="fc2")(hidden_BC))[:, None, None]


class InvertedResidual(nn.Module):
  """Expansion, depthwise convolution, squeeze and excitation, projection; a residual where shapes allow."""

  block: Bottleneck

  @nn.compact
  def __call__(self, x_BHWC):
    b, channels = self.block, x_BHWC.shape[-1]
    conv = functools.partial(ConvNorm, activation=nn.hard_swish if b.hard_swish else nn.relu)
    y_BHWC = x_BHWC
    if b.expanded != channels:
      y_BHWC = conv(b.expanded, name="expand")(y_BHWC)
    y_BHWC = conv(b.expanded, b.kernel, b.stride, depthwise=True, name="depthwise")(y_BHWC)
    if b.squeeze:
      y_BHWC = SqueezeExcitation(name="squeeze")(y_BHWC)
    y_BHWC = ConvNorm(b.out, name="project")(y_BHWC)
    return x_BHWC + y_BHWC if b.stride == 1 and b.out == channels else y_BHWC


class MobileNetV3Small(nn.Module):
  """The convolutions."""

  @nn.compact
  def __call__(self, x_BHWC):
    """Returns the last feature map float32[B, H / 32, W / 32, 576] of float32[B, H, W, 3]."""
    x_BHWC = ConvNorm(STEM_CHANNELS, 3, 2, activation=nn.hard_swish, name="stem")(x_BHWC)
    for i, block in enumerate(BLOCKS):
      x_BHWC = InvertedResidual(block, name=f"block_{i}")(x_BHWC)
    return ConvNorm(CHANNELS, activation=nn.hard_swish, name="last")(x_BHWC)
