"""Schedules and the optimizer, with openpi's choices as defaults: AdamW after clipping by the global norm."""

import optax

from pi0rag_jax.errors import unknown_name
from pi0rag_jax.typing import Config

# openpi's.
ADAM_B1, ADAM_B2, ADAM_EPS = 0.9, 0.95, 1e-8
SCHEDULES = ("cosine", "rsqrt", "constant")


def cosine(*, peak: float, warmup_steps: int, decay_steps: int, end: float) -> optax.Schedule:
  """Returns step -> learning rate: linear to `peak`, then half a cosine to `end` at `decay_steps`, warm-up included."""
  return optax.warmup_cosine_decay_schedule(
    init_value=peak / (warmup_steps + 1), peak_value=peak, warmup_steps=warmup_steps,
    decay_steps=max(decay_steps, warmup_steps + 1), end_value=end)


def rsqrt(*, peak: float, warmup_steps: int, timescale: float) -> optax.Schedule:
  """Returns step -> learning rate: linear to `peak`, then falling as 1 / sqrt(1 + steps since / timescale)."""
  warmup = optax.linear_schedule(peak / (warmup_steps + 1), peak, warmup_steps)
  return optax.join_schedules([warmup, lambda step: peak / (1 + step / timescale) ** 0.5], [warmup_steps])


def constant(*, peak: float, warmup_steps: int) -> optax.Schedule:
  """Returns step -> learning rate: linear to `peak`, where it stays."""
  warmup = optax.linear_schedule(peak / (warmup_steps + 1), peak, warmup_steps)
  return optax.join_schedules([warmup, optax.constant_schedule(peak)], [warmup_steps])


def adamw(schedule: optax.Schedule, *, clip_norm: float = 1.0, weight_decay: float = 1e-10, b1: float = ADAM_B1,
          b2: float = ADAM_B2, eps: float = ADAM_EPS) -> optax.GradientTransformation:
  """Returns the transformation of gradients into updates."""
  adam = optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
  return optax.chain(optax.clip_by_global_norm(clip_norm), adam)


def make_schedule(config: Config) -> optax.Schedule:
  """Returns the schedule that `config.schedule` names; a cosine ends at `config.steps`."""
  shared = {"peak": config.learning_rate, "warmup_steps": config.warmup_steps}
  if config.schedule == "cosine":
    end = config.learning_rate * config.final_learning_rate_fraction
    return cosine(**shared, decay_steps=config.decay_steps or config.steps, end=end)
  if config.schedule == "rsqrt":
    return rsqrt(**shared, timescale=config.rsqrt_timescale)
  if config.schedule == "constant":
    return constant(**shared)
  raise unknown_name("schedule", config.schedule, SCHEDULES)


def make_optimizer(config: Config) -> optax.GradientTransformation:
  """Returns the optimizer of a configuration."""
  return adamw(make_schedule(config), clip_norm=config.clip_norm, weight_decay=config.weight_decay)
