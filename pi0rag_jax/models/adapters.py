"""Adapters of a whole model: which parameters train beside them, and how they are merged into the base.

Merging runs on the host, a layer at a time, so that it needs little memory beside the parameters.
"""

import dataclasses
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.gemma import EQUATIONS, GemmaConfig, expert_name
from pi0rag_jax.models.lora import coupled_axes, weight_delta
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.typing import Params

Config = TypeVar("Config", bound=PaliGemmaConfig)
FEED_FORWARD = ("gating_einsum", "linear")
_LANGUAGE_MODEL = "PaliGemma/llm/"


def has_adapters(config: GemmaConfig) -> bool:
  """Returns whether a language model or action expert has an adapter."""
  return config.lora_attn is not None or config.lora_ffn is not None


def is_trainable(path: str, config: PaliGemmaConfig) -> bool:
  """Returns whether openpi trains the parameter at a '/'-joined path under the freeze rule of `config`.

  An expert with adapters has all its other parameters frozen, the prompt's token table among those of expert 0.
  The image tower and the projections of state, action and time train; without adapters everything does.
  """
  if not path.startswith(_LANGUAGE_MODEL) or "lora" in path:
    return True
  # openpi's own test of the second expert.
  expert = int("_1" in path.removeprefix(_LANGUAGE_MODEL))
  return not has_adapters(config.experts[expert])


def without_adapters(config: Config) -> Config:
  """Returns the configuration of the same model with its adapters merged."""
  experts = [name for name in ("paligemma", "expert") if hasattr(config, name)]
  return dataclasses.replace(config, **{
    name: dataclasses.replace(getattr(config, name), lora_attn=None, lora_ffn=None) for name in experts})


def merge(params: Params, config: Config, *, dtype=None) -> tuple[Params, Config]:
  """Returns (parameters, configuration) of a plain model that computes what base and adapters do.

  Sums are in float32, and rounded once.

  Args:
    params: of a model of `config`; adapters best as trained, in float32.
    config: a configuration, with adapters or without.
    dtype: of all floating parameters that come out; None keeps each one's own.
  Raises:
    Pi0RagError: the parameters lack an adapter that the configuration names, or have one that it does not.
  """
  flat = traverse_util.flatten_dict(params, sep="/")
  wanted = {base: adapter for i, c in enumerate(config.experts) for base, adapter in _adapters(i, c).items()}
  named = {path for adapter in wanted.values() for path in (adapter.a, adapter.b)}
  missing = sorted((named | wanted.keys()) - flat.keys())
  unknown = sorted(path for path in flat if "lora" in path and path not in named)
  if missing or unknown:
    raise Pi0RagError(
      "the adapters of the parameters are not those of the configuration: missing "
      f"{', '.join(missing) or 'none'}; beyond it {', '.join(unknown) or 'none'}")
  merged = {}
  for path, array in flat.items():
    if path in wanted:
      merged[path] = wanted[path].merged(flat, path, dtype)
    elif path not in named:
      merged[path] = array.astype(dtype) if dtype and jnp.issubdtype(array.dtype, jnp.floating) else array
  return traverse_util.unflatten_dict(merged, sep="/"), without_adapters(config)


@dataclasses.dataclass(frozen=True)
class _Adapter:
  """Where an adapter's factors are, and how they are applied."""

  a: str
  b: str
  # Without a scale in the feed-forward network: see gemma.FeedForward.
  scale: float = 1.0
  coupled: tuple[int, ...] = ()

  def merged(self, flat, base: str, dtype):
    """Returns the weights [depth, ...] of the path `base` with the adapter added."""
    w = flat[base]
    out = np.empty(w.shape, dtype or w.dtype)
    for i in range(w.shape[0]):
      layer, a, b = (np.asarray(array[i]).astype(np.float32) for array in (w, flat[self.a], flat[self.b]))
      out[i] = layer + weight_delta(a, b, coupled=self.coupled, scale=self.scale)
    return out


def _adapters(index: int, config: GemmaConfig) -> dict[str, _Adapter]:
  """Returns {path of a weight: its adapter} of one expert."""
  found = {}
  layers = f"{_LANGUAGE_MODEL}layers"
  if config.lora_attn is not None:
    fused = config.num_kv_heads == config.num_heads
    for name in ("qkv_einsum", "attn_vec_einsum") if fused else ("q_einsum", "kv_einsum", "attn_vec_einsum"):
      at = f"{layers}/attn/{expert_name(name, index)}"
      coupled = coupled_axes(EQUATIONS[name])
      found[f"{at}/w"] = _Adapter(f"{at}/lora_a", f"{at}/lora_b", config.lora_attn.scale, coupled)
  if config.lora_ffn is not None:
    for name in FEED_FORWARD:
      at = f"{layers}/{expert_name('mlp', index)}/{name}"
      found[at] = _Adapter(f"{at}_lora_a", f"{at}_lora_b")
  return found
