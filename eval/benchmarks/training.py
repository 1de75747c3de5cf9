"""`train`: a training step of everything, of adapters and of heads: samples per second, use of the device, memory.

Trained parameters and the optimizer's state are float32, frozen ones bfloat16, and a step gives its state up, as in
`train.launch`. Utilization is the model's FLOPs (`train.utilization`) by the peak of matrix products that the same run
measured in the model's computing type. All chosen variants are on the device together and take turns: a large model
needs few of them at a time.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.benchmarks import models, peak, timing
from pi0rag_jax.models import adapters, pi0
from pi0rag_jax.models.heads import base, presets, registry
from pi0rag_jax.models.lora import LoraConfig
from pi0rag_jax.models.pi0_config import Pi0Config
from pi0rag_jax.typing import Params
from train import heads, optimizer, partition, policy, policy_loss, step, utilization
from train.task import POLICY

BATCH = 2  # where `--batch` says nothing
# As in openpi's gemma_2b_lora and gemma_300m_lora.
RANKS = {"paligemma": 16, "expert": 32}
FULL, HEADS = "full", "heads"


@dataclasses.dataclass(frozen=True)
class Training:
  """What a step needs, as `train.task.Task` has it; `dtype` is that of most products."""

  trainable: Params
  frozen: Params
  loss: step.LossFn
  batch: Mapping[str, Any]
  dtype: str


def train(flags: argparse.Namespace) -> list[dict]:
  """Returns a row for each variant: time, samples per second, utilization and memory of a step."""
  flags.batch = flags.batch or BATCH
  trainings = {title: training for name in flags.variants for title, training in _trainings(name, flags)}
  calls, rows = {}, {}
  for name, training in trainings.items():
    calls[name], rows[name] = _step(training)
  taken = timing.interleaved(calls, repeats=flags.repeats)
  for name, row in rows.items():
    rows[name] = {"what": name, "batch": flags.batch, **timing.summary(taken[name]), **row,
                  **_rates(row["model_tflop"], float(np.median(taken[name])), flags.batch, trainings[name].dtype)}
    if not name.startswith("head "):
      rows[name] = {"size": flags.size, **rows[name]}
      if FULL in rows:
        rows[name] |= {"time_vs_full": round(rows[name]["p50_ms"] / rows[FULL]["p50_ms"], 3),
                       "memory_vs_full": round(row["memory_MB"] / rows[FULL]["memory_MB"], 3)}
  return list(rows.values())


def _rates(model_tflop: float, step_ms: float, batch: int, dtype: str) -> dict[str, float]:
  tflops = 1000 * model_tflop / step_ms
  rates = {"samples_per_s": 1000 * batch / step_ms, "tflops": tflops,
           "utilization": tflops / peak.measure(5)[f"matrix_{dtype}"]["tflops"]}
  return {name: float(f"{rate:.4g}") for name, rate in rates.items()}  # of small models too


def _trainings(name: str, flags: argparse.Namespace) -> list[tuple[str, Training]]:
  """Returns (name, training) of what a value of `--variants` stands for."""
  if name == HEADS:
    return [(f"head {preset}", _head(preset, flags.batch)) for preset in presets.PRESETS]
  title, config, is_trainable = variant(name, flags.size)
  return [(title, _policy(config, is_trainable, flags.batch))]


def variant(name: str, size: str) -> tuple[str, Pi0Config, Callable[[str], bool]]:
  """Returns (title, model, which paths train) of a policy's training."""
  config = models.SIZES[size]
  adapted = dataclasses.replace(config, **{
    tower: dataclasses.replace(getattr(config, tower), lora_attn=lora, lora_ffn=lora)
    for tower, lora in ((tower, LoraConfig(rank=rank, alpha=float(rank))) for tower, rank in RANKS.items())})
  remat = functools.partial(dataclasses.replace, remat="full")
  is_adapter = lambda path: adapters.is_trainable(path, adapted)  # noqa: E731
  # What openpi trains, less the image tower.
  is_language = lambda path: is_adapter(path) and not path.startswith(policy.IMAGE_TOWER)  # noqa: E731
  everything = lambda path: True  # noqa: E731
  return {
    "full": (FULL, config, everything), "full_remat": ("full, remat", remat(config), everything),
    "lora": ("lora", adapted, is_adapter),
    "lora_frozen_images": ("lora, image tower frozen", adapted, is_language),
    "lora_frozen_images_remat": ("lora, image tower frozen, remat", remat(adapted), is_language)}[name]


def policy_loss_of(config: Pi0Config) -> step.LossFn:
  """Returns the loss of a model, without augmentation."""
  return functools.partial(policy_loss.batch_loss, pi0.Pi0(config), options=None)


def _policy(config: Pi0Config, is_trainable: Callable[[str], bool], batch: int) -> Training:
  obs = models.observation(config, batch=batch)
  data = {"image": obs.images, "state": obs.state, "tokenized_prompt": obs.tokenized_prompt,
          "tokenized_prompt_mask": obs.tokenized_prompt_mask, "actions": models.chunk(config, batch=batch)}
  trainable, frozen = partition.split(models.params(config), is_trainable)
  return Training({POLICY: partition.cast(trainable, jnp.float32)}, {POLICY: partition.cast(frozen, jnp.bfloat16)},
                  policy_loss_of(config), data, config.dtype)


def _head(preset: str, batch: int) -> Training:
  """Returns the training of a published LSTM head from features that were computed before, random here."""
  head = registry.make(presets.preset(preset))
  config: base.HeadConfig = head.config
  rng = np.random.default_rng(0)
  data = {"features_BWD": rng.standard_normal((batch, config.window, config.feature_dim), np.float32),
          "actions_BWTA": rng.random((batch, config.window, config.chunk, config.action_dim), np.float32)}
  params = jax.jit(functools.partial(base.init, head))(jax.random.key(0))
  return Training({POLICY: params}, {}, functools.partial(heads.batch_loss, head), data, "float32")


def _step(training: Training) -> tuple[Callable, dict]:
  """Returns (one step, its FLOPs and memory): trained parameters, optimizer state and what it takes beside them."""
  optimize = optimizer.adamw(optimizer.constant(peak=1e-4, warmup_steps=10))
  batch = len(next(iter(jax.tree.leaves(training.batch))))
  frozen, data = jax.device_put((training.frozen, {**training.batch, "index": jnp.arange(batch)}))
  state = step.init_state(jax.device_put(training.trainable), optimize, ema=False)
  flops = utilization.step_flops(training.loss, state.params, frozen, data)
  train_step = functools.partial(step.train_step, loss_fn=training.loss, optimizer=optimize, seed=0, ema_decay=0.0,
                                 mean=lambda tree: tree)
  compiled = jax.jit(train_step, donate_argnums=0).lower(state, frozen, data).compile()
  memory = compiled.memory_analysis()
  assert memory is not None, "this backend does not say what memory a program takes"
  total = (memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
           - memory.alias_size_in_bytes)
  held = [state]  # the step gives its argument up

  def call():
    held[0], metrics = compiled(held[0], frozen, data)
    return held[0], metrics

  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
  return call, {
    "trainable": count(state.params), "frozen": count(frozen), "model_tflop": float(f"{flops / 1e12:.4g}"),
    "memory_MB": round(total / 1e6, 3), "of_it_temporary_MB": round(memory.temp_size_in_bytes / 1e6, 3)}
