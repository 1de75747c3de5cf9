"""Low-rank adapters with openpi's arithmetic: their configuration, their einsums, and what they add to a weight.

An adapter of a weight whose last two axes are (in, out) is `lora_a` [..., in, L] and `lora_b` [..., L, out].
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from pi0rag_jax.errors import Pi0RagError

# openpi starts both factors with this spread: a fresh adapter already changes the output a little.
INIT_STD = 0.01
RANK_AXIS = "L"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Size and strength of an adapter."""

  rank: int
  alpha: float
  # Rank-stabilized: alpha is divided by the root of the rank.
  rslora: bool = False

  def __post_init__(self):
    if self.rank < 1:
      raise Pi0RagError(f"lora: rank is {self.rank}, at least 1 is needed")

  @property
  def scale(self) -> float:
    """The factor of the adapter's output."""
    return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


def adapter_equations(equation: str) -> tuple[str, str]:
  """Returns the einsums of `lora_a` and `lora_b` for a weight that is applied by `equation`.

  "BTNH,NHD->BTD" gives ("BTNH,NHL->BTL", "BTL,NLD->BTD"): where heads are summed, each factor sums them alone.
  """
  x, w, out = equation.replace("->", ",").split(",")
  between = out.replace(w[-1], RANK_AXIS)
  return f"{x},{w[:-1]}{RANK_AXIS}->{between}", f"{between},{w[:-2]}{RANK_AXIS}{w[-1]}->{out}"


def coupled_axes(equation: str) -> tuple[int, ...]:
  """Returns the axes of a weight, before its last two, that `equation` sums: heads, in "BTNH,NHD->BTD".

  Such an axis is summed in `lora_a` and again, apart from it, in `lora_b`: all pairs meet.
  """
  _, w, out = equation.replace("->", ",").split(",")
  return tuple(i for i, axis in enumerate(w[:-2]) if axis not in out)


def weight_delta(a, b, *, coupled: tuple[int, ...] = (), scale: float = 1.0):
  """Returns what an adapter (a, b) adds to its weight, with the `coupled_axes` of the weight's equation."""
  return scale * (a @ b.sum(axis=coupled, keepdims=True))


class Einsum(nn.Module):
  """A weight `w` applied by an einsum in the dtype of its input, and an adapter beside it where configured."""

  shape: tuple[int, ...]
  init: nn.initializers.Initializer
  lora: LoraConfig | None = None

  @nn.compact
  def __call__(self, equation, x):
    w = self.param("w", self.init, self.shape)
    y = jnp.einsum(equation, x, w.astype(x.dtype))
    if self.lora is None:
      return y
    a, b = adapter_params(self, "", self.shape, self.lora)
    equation_a, equation_b = adapter_equations(equation)
    low = jnp.einsum(equation_a, x, a.astype(x.dtype))
    return y + jnp.einsum(equation_b, low, b.astype(x.dtype)) * self.lora.scale


def adapter_params(module: nn.Module, prefix: str, shape, lora: LoraConfig):
  """Returns the parameters (`lora_a`, `lora_b`), named with a prefix, of a weight of `shape` in a module."""
  init = nn.initializers.normal(INIT_STD)
  a = module.param(f"{prefix}lora_a", init, (*shape[:-1], lora.rank))
  b = module.param(f"{prefix}lora_b", init, (*shape[:-2], lora.rank, shape[-1]))
  return a, b
