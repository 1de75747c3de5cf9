"""Adapters that learn what a memory of `panda_small` says: from its taught episodes to weights.

    python -m pi0rag_jax.memory export MEMORY --format=lerobot --kept=KEPT --out=data/taught
    python -m train.launch --config=configs/panda_consolidate.py --workdir=DIR
    python -m pi0rag_jax.memory migrate MEMORY --policy=DIR/policy --kept=KEPT --out=MEMORY2

The labels are the memory's chunks, at the moments that it has records of. For another policy take its own configuration
and change the same entries.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import openpi_finetune, panda_small

BASE = "pi0rag_jax/assets/panda_small"
LORA = {"rank": 8, "alpha": 8.0}


def get_config() -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`."""
  config: Any = openpi_finetune.adapters(panda_small.get_config().unlock())
  config.name = "panda_consolidated"
  config.lora = False  # the sizes here say it
  for tower in (config.model.paligemma, config.model.expert):
    tower.update({"lora_attn": ConfigDict(LORA), "lora_ffn": ConfigDict(LORA)})
  config.init_checkpoint = f"{BASE}/params"
  config.norm_stats, config.text_tokenizer = BASE, f"{BASE}/tokenizer.model"
  config.hidden_state_dims = ()  # the statistics hide them already
  config.center_images = False

  config.data = ({"path": "data/taught"},)
  config.make_data = "python -m pi0rag_jax.memory export MEMORY --format=lerobot --kept=KEPT --out=data/taught"
  config.columns = ConfigDict({
    "image": {name: f"observation.images.{name}" for name in config.model.image_keys},
    "state": "observation.state", "actions": "action"})
  config.label_chunks, config.frames_where = "label", ("taught",)
  config.successes_only = False
  config.auxiliary_targets, config.approach_repeats = (), 0
  config.cache = "memory"
  config.validation_fraction = 0.1

  config.steps, config.learning_rate, config.warmup_steps = 1_500, 3e-4, 50
  config.validate_every = 250
  return config.lock()
