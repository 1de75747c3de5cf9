"""The product with a matrix, whose kernel may be quantized: wherever packed parameters are applied."""

from typing import Any

import flax.linen as nn
import jax


class Dense(nn.Module):
  """`nn.Dense` in the dtype of its input; a kernel of int8, see `packing.quantize`, has a `scale` [out] beside it."""

  features: int
  use_bias: bool = True
  kernel_init: Any = nn.initializers.lecun_normal()
  bias_init: Any = nn.initializers.zeros

  @nn.compact
  def __call__(self, x):
    kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
    if self.has_variable("params", "scale"):
      # Tied to x, the kernel is converted where it is read: else XLA hoists a copy, as large as the weights were, out
      # of the flow's loop.
      kernel, x = jax.lax.optimization_barrier((kernel, x))
      scale = self.param("scale", nn.initializers.ones, (self.features,))
      y = ((x @ kernel.astype(x.dtype)) * scale).astype(x.dtype)
    else:
      y = x @ kernel.astype(x.dtype)
    if self.use_bias:
      y += self.param("bias", self.bias_init, (self.features,)).astype(x.dtype)
    return y
