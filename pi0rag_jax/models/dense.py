"""The product with a matrix, whose kernel may be quantized: wherever packed parameters are applied."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

FP8 = jnp.float8_e4m3fn
INT8_MAX = 127
TURNED = "turned"  # a kernel int8[out, in], see `packing.WEIGHTS`


class Dense(nn.Module):
  """`nn.Dense` in the dtype of its input; a kernel that is quantized, see `packing.WEIGHTS`, has a `scale` [out]."""

  features: int
  use_bias: bool = True
  kernel_init: Any = nn.initializers.lecun_normal()
  bias_init: Any = nn.initializers.zeros

  @nn.compact
  def __call__(self, x):
    if self.has_variable("params", TURNED):
      turned = self.param(TURNED, nn.initializers.zeros, (self.features, x.shape[-1]))
      scale = self.param("scale", nn.initializers.ones, (self.features,))
      return self._with_bias((_int8_product(x, turned) * scale).astype(x.dtype))
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
    return self._with_bias(y)

  def _with_bias(self, y):
    return y + self.param("bias", self.bias_init, (self.features,)).astype(y.dtype) if self.use_bias else y


def _product(x, kernel):
  """Returns x @ kernel in float32, x rounded to the kernel's type; to fp8 each row as large as the type allows."""
  if kernel.dtype != FP8:
    return jnp.matmul(x.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)
  unit = _unit(x, jnp.finfo(FP8).max)
  return jnp.matmul((x / unit).astype(FP8), kernel, preferred_element_type=jnp.float32) * unit


def _int8_product(x, turned):
  """Returns x @ turned.T in float32, each row of x rounded to int8, as large as that allows; its sums are exact."""
  unit = _unit(x, INT8_MAX)
  rounded = jnp.rint(x / unit).astype(jnp.int8)
  return jnp.einsum("...d,fd->...f", rounded, turned, preferred_element_type=jnp.int32).astype(jnp.float32) * unit


def _unit(x, largest):
  """Returns what each row is divided by, so that its largest entry becomes `largest`; 1 for a row of zeros."""
  row = jnp.abs(x).max(axis=-1, keepdims=True).astype(jnp.float32)
  return jnp.where(row > 0, row / jnp.asarray(largest, jnp.float32), 1.0)
