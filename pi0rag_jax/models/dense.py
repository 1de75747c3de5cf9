"""The product with a matrix, whose kernel may be quantized: wherever packed parameters are applied."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

FP8 = jnp.float8_e4m3fn


class Dense(nn.Module):
  """`nn.Dense` in the dtype of its input; a kernel that is quantized, see `packing.WEIGHTS`, has a `scale` [out]."""

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
      if jnp.issubdtype(kernel.dtype, jnp.floating):
        y = (_product(x, kernel) * scale).astype(x.dtype)
      else:
        y = ((x @ kernel.astype(x.dtype)) * scale).astype(x.dtype)
    else:
      y = x @ kernel.astype(x.dtype)
    if self.use_bias:
      y += self.param("bias", self.bias_init, (self.features,)).astype(x.dtype)
    return y


def _product(x, kernel):
  """Returns x @ kernel in float32, x rounded to the kernel's type; to fp8 each row as large as the type allows."""
  if kernel.dtype != FP8:
    return jnp.matmul(x.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)
  largest = jnp.abs(x).max(axis=-1, keepdims=True).astype(jnp.float32)
  unit = jnp.where(largest > 0, largest / jnp.finfo(FP8).max.astype(jnp.float32), 1.0)
  return jnp.matmul((x / unit).astype(FP8), kernel, preferred_element_type=jnp.float32) * unit
