"""The model families, pi0, pi0.5 and pi0-FAST: the one place that tells them apart."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.models import pi0, pi0_fast
from pi0rag_jax.models.pi0_config import PaliGemmaConfig, Pi0Config, Pi0FastConfig
from pi0rag_jax.typing import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """What models of one kind have in common."""

  name: str
  sizes: type[PaliGemmaConfig]
  network: Callable[[Any], nn.Module]  # of the sizes
  init: Callable[[Any, Any], Params]  # of the sizes and a key: fresh float32 parameters in openpi's tree
  fixed: Mapping[str, Any]  # sizes that make it this family
  horizon: int  # openpi's, steps
  prompt_tokens: int  # openpi's
  quantiles: bool = True  # normalizes states and actions by quantiles instead of z-scores
  state_in_prompt: bool = False  # writes the state into the prompt by default
  # Its language model writes the actions, as tokens: no action expert, and the cameras that there are.
  writes_tokens: bool = False

  def read_sizes(self, values: Mapping) -> PaliGemmaConfig:
    """Returns the sizes of a JSON object."""
    return self.sizes.from_dict({**values, **self.fixed})


_FLOW = {"sizes": Pi0Config, "network": pi0.Pi0, "init": pi0.init, "horizon": 50}
FAMILIES = {family.name: family for family in (
  Family(name="pi0", **_FLOW, fixed={"pi05": False}, prompt_tokens=48, quantiles=False),
  Family(name="pi05", **_FLOW, fixed={"pi05": True}, prompt_tokens=200, state_in_prompt=True),
  Family(name="pi0_fast", sizes=Pi0FastConfig, network=pi0_fast.Pi0Fast, init=pi0_fast.init, fixed={}, horizon=32,
         prompt_tokens=250, writes_tokens=True))}


def named(name: str) -> Family:
  """Returns the family of a name. Errors: Pi0RagError with the nearest of an unknown one."""
  if name not in FAMILIES:
    raise unknown_name("model family", str(name), FAMILIES)
  return FAMILIES[name]


def of(sizes: PaliGemmaConfig) -> Family:
  """Returns the family of a model's sizes."""
  for family in FAMILIES.values():
    if type(sizes) is family.sizes and all(getattr(sizes, key) == value for key, value in family.fixed.items()):
      return family
  known = ", ".join(dict.fromkeys(family.sizes.__name__ for family in FAMILIES.values()))
  raise Pi0RagError(f"no network for a {type(sizes).__name__}; configurations of networks: {known}")
