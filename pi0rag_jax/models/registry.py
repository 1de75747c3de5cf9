"""The named sizes of towers and models, and the network of a configuration."""

import dataclasses

import flax.linen as nn

from pi0rag_jax.errors import unknown_name
from pi0rag_jax.models import family
from pi0rag_jax.models.gemma import GemmaConfig
from pi0rag_jax.models.lora import LoraConfig
from pi0rag_jax.models.pi0_config import PaliGemmaConfig, Pi0Config, Pi0FastConfig
from pi0rag_jax.models.siglip import SiglipConfig
from pi0rag_jax.typing import Params

# openpi's sizes at the commit in third_party/openpi/README.md.
GEMMA = {
  "gemma_2b": GemmaConfig(width=2048, depth=18, mlp_dim=16384, num_heads=8, num_kv_heads=1, head_dim=256),
  "gemma_300m": GemmaConfig(width=1024, depth=18, mlp_dim=4096, num_heads=8, num_kv_heads=1, head_dim=256),
  "dummy": GemmaConfig(width=64, depth=4, mlp_dim=128, num_heads=8, num_kv_heads=1, head_dim=16),
}
for _name, _rank in (("gemma_2b", 16), ("gemma_300m", 32)):
  _lora = LoraConfig(rank=_rank, alpha=float(_rank))
  GEMMA[f"{_name}_lora"] = dataclasses.replace(GEMMA[_name], lora_attn=_lora, lora_ffn=_lora)
SIGLIP = {
  "So400m/14": SiglipConfig(width=1152, depth=27, mlp_dim=4304, num_heads=16, patch_size=14),
  "dummy/16": SiglipConfig(width=32, depth=2, mlp_dim=64, num_heads=2, patch_size=16, zero_head=False),
}


def _pi0(paligemma="gemma_2b", expert="gemma_300m", *, max_token_len=48, pi05=False) -> Pi0Config:
  """Returns openpi's pi0 with experts of the named sizes."""
  return Pi0Config(
    paligemma=GEMMA[paligemma], expert=GEMMA[expert], siglip=SIGLIP["So400m/14"], action_dim=32,
    action_horizon=50, max_token_len=max_token_len, pi05=pi05)


def _pi0_fast(paligemma="gemma_2b") -> Pi0FastConfig:
  """Returns openpi's pi0-FAST with a language model of the named size."""
  return Pi0FastConfig(
    paligemma=GEMMA[paligemma], siglip=SIGLIP["So400m/14"], action_dim=32, action_horizon=32, max_token_len=250)


_DUMMY = {
  "paligemma": GEMMA["dummy"], "siglip": SIGLIP["dummy/16"], "action_dim": 8, "action_horizon": 4,
  "vocab_size": 256, "image_size": (64, 64), "dtype": "float32", "unroll": True,
}
MODELS = {
  "pi0": _pi0(),
  "pi0_lora": _pi0("gemma_2b_lora", "gemma_300m_lora"),
  "pi0_lora_paligemma_only": _pi0("gemma_2b_lora"),
  "pi0_lora_expert_only": _pi0(expert="gemma_300m_lora"),
  "pi05": _pi0(max_token_len=200, pi05=True),
  "pi05_lora": _pi0("gemma_2b_lora", "gemma_300m_lora", max_token_len=200, pi05=True),
  "pi0_fast": _pi0_fast(),
  "pi0_fast_lora": _pi0_fast("gemma_2b_lora"),
  # A fraction of a million parameters, for tests and for trying out a pipeline.
  "dummy": Pi0Config(**_DUMMY, expert=GEMMA["dummy"], max_token_len=8),
  "dummy_fast": Pi0FastConfig(**_DUMMY, max_token_len=16),
}


def gemma(name: str) -> GemmaConfig:
  """Returns the sizes of a language model or action expert."""
  return _lookup("Gemma size", name, GEMMA)


def siglip(name: str) -> SiglipConfig:
  """Returns the sizes of an image tower."""
  return _lookup("SigLIP size", name, SIGLIP)


def model(name: str) -> PaliGemmaConfig:
  """Returns the configuration of a whole model."""
  return _lookup("model", name, MODELS)


def network(config: PaliGemmaConfig) -> nn.Module:
  """Returns the network of a configuration of any family."""
  return family.of(config).network(config)


def init(config: PaliGemmaConfig, rng) -> Params:
  """Returns fresh float32 parameters of any family in openpi's tree; `jax.eval_shape` of it gives their shapes."""
  return family.of(config).init(config, rng)


def _lookup(kind: str, name: str, table: dict):
  if name not in table:
    raise unknown_name(kind, name, table)
  return table[name]
