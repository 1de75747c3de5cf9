"""The named sizes of towers and models."""

from pi0rag_jax.errors import unknown_name
from pi0rag_jax.models.gemma import GemmaConfig
from pi0rag_jax.models.pi0_config import Pi0Config
from pi0rag_jax.models.siglip import SiglipConfig

# openpi's sizes at the commit in third_party/openpi/README.md.
GEMMA = {
  "gemma_2b": GemmaConfig(width=2048, depth=18, mlp_dim=16384, num_heads=8, num_kv_heads=1, head_dim=256),
  "gemma_300m": GemmaConfig(width=1024, depth=18, mlp_dim=4096, num_heads=8, num_kv_heads=1, head_dim=256),
  "dummy": GemmaConfig(width=64, depth=4, mlp_dim=128, num_heads=8, num_kv_heads=1, head_dim=16),
}
SIGLIP = {
  "So400m/14": SiglipConfig(width=1152, depth=27, mlp_dim=4304, num_heads=16, patch_size=14),
  "dummy/16": SiglipConfig(width=32, depth=2, mlp_dim=64, num_heads=2, patch_size=16, zero_head=False),
}
_FULL_SIZE = {
  "paligemma": GEMMA["gemma_2b"], "expert": GEMMA["gemma_300m"], "siglip": SIGLIP["So400m/14"],
  "action_dim": 32, "action_horizon": 50,
}
MODELS = {
  "pi0": Pi0Config(**_FULL_SIZE, max_token_len=48),
  "pi05": Pi0Config(**_FULL_SIZE, max_token_len=200, pi05=True),
  # A fraction of a million parameters, for tests and for trying out a pipeline.
  "dummy": Pi0Config(
    paligemma=GEMMA["dummy"], expert=GEMMA["dummy"], siglip=SIGLIP["dummy/16"], action_dim=8, action_horizon=4,
    max_token_len=8, vocab_size=256, image_size=(64, 64), dtype="float32", unroll=True),
}


def gemma(name: str) -> GemmaConfig:
  """Returns the sizes of a language model or action expert."""
  return _lookup("Gemma size", name, GEMMA)


def siglip(name: str) -> SiglipConfig:
  """Returns the sizes of an image tower."""
  return _lookup("SigLIP size", name, SIGLIP)


def model(name: str) -> Pi0Config:
  """Returns the configuration of a whole model."""
  return _lookup("model", name, MODELS)


def _lookup(kind: str, name: str, table: dict):
  if name not in table:
    raise unknown_name(kind, name, table)
  return table[name]
