"""The policy of the arena, trained on what its streams taught: LoRA-DAgger (`:lora`) and full fine-tuning (`:full`).

    python -m eval.taught --sweep=DIR --out=data/arena
    python -m train.launch --config=configs/arena_retrained.py:lora --workdir=runs/lora

Another policy than the shipped one: `--config.init_checkpoint=POLICY/params --config.norm_stats=POLICY
--config.text_tokenizer=POLICY/tokenizer.model`. Papers say no more than that the corrections are trained on; rank,
rates and steps were chosen here, and nothing but what was taught is trained on.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import metaworld_small
from pi0rag_jax.errors import unknown_name

POLICY = "pi0rag_jax/assets/metaworld_arena"
RANK = 8
VARIANTS = ("lora", "full")


def get_config(variant: str = "lora") -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`."""
  if variant not in VARIANTS:
    raise unknown_name("variant of the configuration", variant, VARIANTS)
  config: Any = metaworld_small.get_config().unlock()
  config.name = f"metaworld_{variant}"
  config.data = ({"path": "data/arena"},)
  config.make_data = "python -m eval.taught --sweep=runs/arena --out=data/arena"
  config.columns = ConfigDict({"image": {name: name for name in config.model.image_keys}, "state": "state",
                               "actions": "actions"})
  config.label_chunks = "action_chunks"
  config.init_checkpoint, config.norm_stats = f"{POLICY}/params", POLICY
  config.asset_id = "metaworld_arena"
  config.text_tokenizer = f"{POLICY}/tokenizer.model"
  config.center_images = False
  config.steps, config.batch_size, config.warmup_steps, config.ema_decay = 2_000, 48, 50, 0.0
  config.validate_every, config.best_by = 2_000, "loss"
  config.learning_rate = 1e-4
  if variant == "lora":
    config.learning_rate, config.freeze_image_tower = 1e-3, True
    for tower in ("paligemma", "expert"):
      for part in ("lora_attn", "lora_ffn"):
        config.model[tower][part] = ConfigDict({"rank": RANK, "alpha": float(RANK)})
  return config.lock()
