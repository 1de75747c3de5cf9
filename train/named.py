"""What a training takes of a configuration of openpi's kind: robot, model, data, and the recipe it leaves open."""

import dataclasses

from pi0rag_jax.models import family
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.openpi.config import DataConfig, ModelConfig, TrainConfig
from pi0rag_jax.openpi.config_file import read_config
from pi0rag_jax.typing import Config


def named_config(config: Config) -> TrainConfig:
  """Returns the configuration that `config.openpi` names, or a plain one of `config.robot`; with adapters if wanted."""
  if config.openpi:
    found = read_config(config.openpi)
  else:
    found = TrainConfig(name=config.name, model=ModelConfig(family=config.family),
                        data=DataConfig(robot=config.robot, asset_id=config.name, prompt_from_task=True))
  model, data = found.model, found.data
  if config.lora:
    lora = lambda variant: variant if variant.endswith("_lora") else f"{variant}_lora"  # noqa: E731
    model = dataclasses.replace(model, paligemma_variant=lora(model.paligemma_variant),
                                action_expert_variant=lora(model.action_expert_variant))
  if config.action_tokenizer:
    model = dataclasses.replace(model, action_tokenizer_path=config.action_tokenizer)
  if config.columns:
    repack = config.columns.to_dict()
    data = dataclasses.replace(data, repack=repack, action_sequence_keys=(repack.get("actions", "actions"),))
  return dataclasses.replace(found, model=model, data=dataclasses.replace(data, asset_id=config.asset_id))


def filled(config: Config) -> Config:
  """Returns the configuration with what it leaves open, None, as the configuration has it that it names."""
  changed = config.copy_and_resolve_references()
  if "openpi" not in config:
    return changed.lock()
  named = named_config(config)
  schedule = named.lr_schedule
  said = {
    "asset_id": read_config(config.openpi).data.stats_id if config.openpi else config.name,
    "steps": named.num_train_steps, "batch_size": named.batch_size, "ema_decay": named.ema_decay or 0.0,
    "learning_rate": schedule.peak_lr, "warmup_steps": schedule.warmup_steps, "decay_steps": schedule.decay_steps,
    "final_learning_rate_fraction": schedule.decay_lr / schedule.peak_lr}
  with changed.unlocked():
    for name, value in said.items():
      if changed[name] is None:
        changed[name] = value
  return changed.lock()


def read_model(config: Config, named: TrainConfig) -> PaliGemmaConfig:
  """Returns the sizes: `config.model` where it gives any, else those of the named configuration."""
  if not config.model:
    return dataclasses.replace(named.model.build(), remat=config.remat)
  return family.named(named.model.family).read_sizes(config.model.to_dict() | {"remat": config.remat})
