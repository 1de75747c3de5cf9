"""Measurements of a model alone, by `eval.bench`: sampling, and steps of training.

`latency`: time of one chunk (batch 1, 10 steps) and of one loss with its gradient.
`train`: a step of full fine-tuning against one of adapters: time, and the memory that the compiled step takes.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.models import adapters, pi0, registry
from pi0rag_jax.models.gemma import GemmaConfig
from pi0rag_jax.models.lora import LoraConfig
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.pi0_config import Pi0Config
from pi0rag_jax.models.siglip import SiglipConfig
from train import finetune, optimizer, partition, step
from train.task import POLICY

# Between the small policy and the released models: openpi's own code takes 751 ms to sample a chunk of it on two idle
# cores (1589 ms on busy ones), and 2790 (4878) ms for loss and gradient.
MIDSIZE = Pi0Config(
  action_dim=32, action_horizon=50, max_token_len=48, vocab_size=4096, dtype="float32",
  siglip=SiglipConfig(width=384, depth=12, mlp_dim=1536, num_heads=6),
  paligemma=GemmaConfig(width=256, mlp_dim=1024, depth=6, num_heads=8, num_kv_heads=1, head_dim=32),
  expert=GemmaConfig(width=128, mlp_dim=512, depth=6, num_heads=8, num_kv_heads=1, head_dim=32))
SIZES = {"midsize": MIDSIZE, "dummy": registry.model("dummy"), "pi0": registry.model("pi0")}
REPEATS = 7


def latency(flags: argparse.Namespace) -> list[dict]:
  """Returns the time of sampling a chunk, and of a loss and its gradient (batch 1)."""
  config = SIZES[flags.size]
  params, obs, noise_BTA = _inputs(config, batch=1)
  model = pi0.Pi0(config)
  time_B = jnp.full(1, 0.5)
  sample = jax.jit(functools.partial(pi0.sample_actions, model, num_steps=10))
  gradient = jax.jit(jax.value_and_grad(lambda p: jnp.mean(pi0.loss(model, p, obs, noise_BTA, -noise_BTA, time_B))))
  calls = {"sample_10_steps": lambda: sample(params, obs, noise_BTA), "loss_and_gradient": lambda: gradient(params)}
  return [{"size": flags.size, "what": name, **times} for name, times in _interleaved(calls).items()]


def train(flags: argparse.Namespace) -> list[dict]:
  """Returns the time and memory of a step of full fine-tuning, and of one of adapters with a frozen image tower."""
  config = SIZES[flags.size]
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
  times = _interleaved(calls)
  base_ms, base_MB = times["full"]["p50_ms"], rows["full"]["memory_MB"]
  return [
    {"size": flags.size, "batch": flags.batch, "what": name, **times[name], **rows[name],
     "time_vs_full": round(times[name]["p50_ms"] / base_ms, 3),
     "memory_vs_full": round(rows[name]["memory_MB"] / base_MB, 3)}
    for name in variants]


def _train_call(config: Pi0Config, is_trainable, *, batch: int) -> tuple[Callable, dict]:
  """Returns (one step, its memory): trained parameters, optimizer state and what the step takes beside them."""
  params, obs, actions_BTA = _inputs(config, batch=batch)
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


def _interleaved(calls: dict[str, Callable]) -> dict[str, dict]:
  """Returns the times of each call, made in turn so that a busy machine slows all of them alike."""
  taken = {name: [] for name in calls}
  for _ in range(REPEATS + 1):
    for name, call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call())
      taken[name].append(1000 * (time.perf_counter() - start))
  return {name: {"p50_ms": round(float(np.median(ms[1:])), 1), "min_ms": round(min(ms[1:]), 1)}
          for name, ms in taken.items()}


def _inputs(config: Pi0Config, *, batch: int):
  """Returns (random parameters, an observation, a chunk)."""
  rng = np.random.default_rng(0)
  dtype = np.float32 if config.dtype == "float32" else jnp.bfloat16
  shapes = jax.eval_shape(functools.partial(registry.init, config), jax.random.key(0))
  params = jax.tree.map(lambda x: jnp.asarray(0.02 * rng.standard_normal(x.shape, np.float32), dtype), shapes)
  image = rng.integers(0, 255, (batch, *config.image_size, 3)).astype(np.uint8)
  obs = Observation.from_dict({
    "image": {name: jnp.asarray(image) for name in config.image_keys},
    "state": jnp.asarray(rng.standard_normal((batch, config.state_size)), jnp.float32),
    "tokenized_prompt": jnp.ones((batch, config.max_token_len), jnp.int32),
    "tokenized_prompt_mask": jnp.ones((batch, config.max_token_len), bool)})
  chunk_BTA = jnp.asarray(rng.standard_normal((batch, config.action_horizon, config.action_dim)), jnp.float32)
  return params, obs, chunk_BTA
