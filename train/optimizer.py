"""The optimizer: AdamW after clipping, under a warm-up and cosine schedule, as in openpi."""

import optax

from pi0rag_jax.typing import Config

# openpi's fixed choices.
ADAM_B1, ADAM_B2 = 0.9, 0.95


def make_schedule(config: Config) -> optax.Schedule:
  """Returns step -> learning rate; the cosine ends at `config.steps`."""
  return optax.warmup_cosine_decay_schedule(
    init_value=config.learning_rate / (config.warmup_steps + 1),
    peak_value=config.learning_rate,
    warmup_steps=config.warmup_steps,
    decay_steps=max(config.steps, config.warmup_steps + 1),
    end_value=config.learning_rate * config.final_learning_rate_fraction,
  )


def make_optimizer(config: Config) -> optax.GradientTransformation:
  """Returns the transformation of gradients into updates."""
  adam = optax.adamw(make_schedule(config), b1=ADAM_B1, b2=ADAM_B2, weight_decay=config.weight_decay)
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)
