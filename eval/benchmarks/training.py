"""`train`: a step of full fine-tuning against one of adapters: time, and the memory that the compiled step takes."""

import argparse
import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from eval.benchmarks import models, timing
from pi0rag_jax.models import adapters, pi0
from pi0rag_jax.models.lora import LoraConfig
from pi0rag_jax.models.pi0_config import Pi0Config
from train import finetune, optimizer, partition, step
from train.task import POLICY


def train(flags: argparse.Namespace) -> list[dict]:
  """Returns the time and memory of a step of full fine-tuning, and of one of adapters with a frozen image tower."""
  config = models.SIZES[flags.size]
  lora = LoraConfig(rank=16, alpha=16.0)
  adapted = dataclasses.replace(
    config, paligemma=dataclasses.replace(config.paligemma, lora_attn=lora, lora_ffn=lora),
    expert=dataclasses.replace(config.expert, lora_attn=lora, lora_ffn=lora))
  variants = {
    "full": (config, lambda path: True),
    "full, remat": (dataclasses.replace(config, remat="full"), lambda path: True),
    "lora": (adapted, lambda path: adapters.is_trainable(path, adapted)),
    "lora, image tower frozen": (
      adapted, lambda path: adapters.is_trainable(path, adapted) and not path.startswith(finetune.IMAGE_TOWER)),
  }
  calls, rows = {}, {}
  for name, (variant, is_trainable) in variants.items():
    calls[name], rows[name] = _train_call(variant, is_trainable, batch=flags.batch)
  times = {name: timing.summary(ms) for name, ms in timing.interleaved(calls, repeats=flags.repeats).items()}
  base_ms, base_MB = times["full"]["p50_ms"], rows["full"]["memory_MB"]
  return [
    {"size": flags.size, "batch": flags.batch, "what": name, **times[name], **rows[name],
     "time_vs_full": round(times[name]["p50_ms"] / base_ms, 3),
     "memory_vs_full": round(rows[name]["memory_MB"] / base_MB, 3)}
    for name in variants]


def _train_call(config: Pi0Config, is_trainable, *, batch: int) -> tuple[Callable, dict]:
  """Returns (one step, its memory): trained parameters, optimizer state and what the step takes beside them."""
  params, obs = models.params(config), models.observation(config, batch=batch)
  actions_BTA = models.chunk(config, batch=batch)
  trainable, frozen = partition.split(params, is_trainable)
  frozen = {POLICY: partition.cast(frozen, jnp.bfloat16)}
  optimize = optimizer.adamw(optimizer.constant(peak=1e-4, warmup_steps=10))
  state = step.init_state({POLICY: trainable}, optimize, ema=False)
  data = {"image": obs.images, "state": obs.state, "tokenized_prompt": obs.tokenized_prompt,
          "tokenized_prompt_mask": obs.tokenized_prompt_mask, "actions": actions_BTA, "index": jnp.arange(batch)}
  loss = functools.partial(finetune.batch_loss, pi0.Pi0(config), options=None)
  compiled = jax.jit(functools.partial(
    step.train_step, loss_fn=loss, optimizer=optimize, seed=0, ema_decay=0.0, mean=lambda tree: tree)).lower(
      state, frozen, data).compile()
  memory = compiled.memory_analysis()
  assert memory is not None, "this backend does not say what memory a program takes"
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
  total = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
  return lambda: compiled(state, frozen, data), {
    "trainable": count(trainable), "frozen": count(frozen), "memory_MB": round(total / 1e6, 1),
    "of_it_temporary_MB": round(memory.temp_size_in_bytes / 1e6, 1)}
