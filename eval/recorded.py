"""What all recorded openpi cases share: how sizes and inputs are written down, and what a deviation is."""

import dataclasses

import jax.numpy as jnp

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import pi0, pi0_fast
from pi0rag_jax.models.gemma import GemmaConfig
from pi0rag_jax.models.lora import LoraConfig
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.models.siglip import SiglipConfig

STAGE_GATE = 2e-5  # float32, absolute
SAMPLING_GATE = 1e-4  # float32, absolute
BF16_GATE = 2e-2  # relative root mean square


@dataclasses.dataclass(frozen=True)
class Deviation:
  """How far one output is from the recorded one, and how far it may be."""

  name: str
  value: float
  gate: float
  measure: str  # "max abs" or "relative rms"

  @property
  def passed(self) -> bool:
    return self.value <= self.gate


def read_config(kind: str, recorded: dict, io) -> PaliGemmaConfig:
  """Returns the model configuration that a case.json describes in openpi's words."""
  model, siglip = recorded["model"], recorded["siglip"]
  shared = {
    "action_dim": model["action_dim"], "action_horizon": model["action_horizon"], "vocab_size": recorded["vocab"],
    "max_token_len": model["max_token_len"], "dtype": model["dtype"],
    "paligemma": read_gemma(recorded["gemma_2b"], model["paligemma_variant"], recorded["lora"], "pg"),
    "siglip": SiglipConfig(**{**siglip, "patch_size": siglip["patch_size"][0]}),
  }
  if kind == "fast":
    cameras = tuple(sorted(key.removeprefix("in/image/") for key in io if key.startswith("in/image/")))
    return pi0_fast.Pi0FastConfig(**shared, image_keys=cameras)
  expert = read_gemma(recorded["gemma_300m"], model["action_expert_variant"], recorded["lora"], "ae")
  return pi0.Pi0Config(**shared, expert=expert, pi05=model["pi05"])


def read_gemma(sizes: dict, variant: str, lora: dict | None, expert: str) -> GemmaConfig:
  """Returns the sizes of one expert, with the adapters that its variant's name asks for."""
  if not variant.endswith("_lora"):
    return GemmaConfig(**sizes)
  if lora is None:
    raise Pi0RagError(f"case.json names the variant {variant} but has no table 'lora' of ranks")
  attn, ffn = (LoraConfig(**lora[expert][part]) if part in lora[expert] else None for part in ("attn", "ffn"))
  return GemmaConfig(**sizes, lora_attn=attn, lora_ffn=ffn)


def read_observation(io) -> Observation:
  """Returns the recorded input observation, images converted as the model takes them."""
  data = {"state": io["in/state"], "image": {}, "image_mask": {}}
  for key in ("tokenized_prompt", "tokenized_prompt_mask", "token_ar_mask", "token_loss_mask"):
    if f"in/{key}" in io:
      data[key] = jnp.asarray(io[f"in/{key}"])
  for key, array in io.items():
    parts = key.split("/")
    if parts[:2] in (["in", "image"], ["in", "image_mask"]):
      data[parts[1]][parts[2]] = jnp.asarray(array)
  return Observation.from_dict(data)
