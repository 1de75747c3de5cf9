"""`compile`: what a compiler makes of a program for an accelerator that is not here.

From shapes alone: nothing runs, and nothing here is a time on a device. Counts are counts; a TPU's milliseconds are its
compiler's own estimate of cycles, and rank programs. GPUs multiply by cuBLAS, since which products are faster by Triton
only a device says.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from eval import naive
from eval.benchmarks import device_memory, hlo, models, targets, training
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import pi0, registry
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.pi0_config import Pi0Config
from pi0rag_jax.policy import compiling
from train import optimizer, parallel, partition, step
from train.checkpoint import POLICY

CUBLAS = {"xla_gpu_enable_triton_gemm": False}
# Of training programs, where `--batch` says nothing: examples of each device.
BATCH = 8
_LARGE = 1_000_000  # entries; a matrix of a layer has more, an activation of one robot fewer


@dataclasses.dataclass(frozen=True)
class Lowered:
  """A program for a target, before it is compiled."""

  program: Any  # jax.stages.Lowered
  facts: dict[str, Any]  # of the row
  weights: Any = ()  # shapes that no loop is to move


def compile_for(flags: argparse.Namespace) -> list[dict]:
  """Returns one row of what the target's compiler says of the program."""
  target = targets.TARGETS[flags.target]
  is_gpu = target.compute_capability is not None
  config = dataclasses.replace(_cut(models.SIZES[flags.size], flags.layers), attention_kernel=flags.kernel)
  compiling.check_attention(config, compute_capability=target.compute_capability)
  if flags.weights in ("int8", "fp8", "w8a8") and not is_gpu:
    raise Pi0RagError(f"--weights={flags.weights} for a {target.kind}: its compiler converts or rounds before each "
                      "product, which is slower than bfloat16; allowed for GPUs")
  devices = target.devices(flags.devices)
  with _cudnn_of(target) if flags.kernel == "cudnn" else mock.patch.dict({}):
    lowered = PROGRAMS[flags.program](config, devices, flags)
  start = time.perf_counter()
  compiled = lowered.program.compile(compiler_options=dict(CUBLAS) if is_gpu else None)
  row = {"target": flags.target, "program": flags.program, "devices": flags.devices, "size": flags.size,
         **({"layers": flags.layers} if flags.layers else {}), **lowered.facts,
         "compile_s": round(time.perf_counter() - start, 1)}
  program = hlo.Program(compiled.as_text())
  return [{**row, **_memory(compiled, target), **_counts(program, lowered, target), **_collectives(program)}]


def infer(config: Pi0Config, devices: list, flags: argparse.Namespace, *, sample: Callable = pi0.sample_actions,
          packed: bool = True) -> Lowered:
  """Returns the sampling of a chunk, from bytes of pictures, on the first device."""
  cameras, batch, steps = flags.cameras[-1], flags.batches[0], flags.steps[0]
  config = dataclasses.replace(config, image_keys=config.image_keys[:cameras], packed=packed, aligned=packed)
  params = device_memory.shapes_of(config)
  if flags.weights:
    params = device_memory.quantized_shapes(params, flags.weights)
  inputs = models.input_shapes(config, batch=batch)
  noise_BTA = inputs.pop("actions")
  run = lambda params, inputs, noise_BTA: sample(  # noqa: E731
    pi0.Pi0(config), params, Observation.from_dict(inputs), noise_BTA, num_steps=steps)
  on_device = functools.partial(_placed, sharding=jax.sharding.SingleDeviceSharding(devices[0]))
  facts = {"cameras": cameras, "batch": batch, "steps": steps, "kernel": flags.kernel, "weights": flags.weights or
           config.dtype}
  return Lowered(jax.jit(run).lower(*map(on_device, (params, inputs, noise_BTA))), facts, params)


def openpi(config: Pi0Config, devices: list, flags: argparse.Namespace) -> Lowered:
  """Returns the same by the structure of openpi's code."""
  return infer(config, devices, flags, sample=naive.sample_actions, packed=False)


def lora(config: Pi0Config, devices: list, flags: argparse.Namespace) -> Lowered:
  """Returns a training step of adapters, a copy of the state on each device."""
  return _training("lora_frozen_images_remat", parallel.Replicated(devices), flags, ema=False)


def fsdp(config: Pi0Config, devices: list, flags: argparse.Namespace) -> Lowered:
  """Returns a training step of all parameters, split over the devices, with their moving average."""
  return _training("full_remat", parallel.Sharded(devices), flags, ema=True)


PROGRAMS: dict[str, Callable[..., Lowered]] = {"infer": infer, "openpi": openpi, "lora": lora, "fsdp": fsdp}


def _training(variant: str, devices: parallel.Replicated | parallel.Sharded, flags: argparse.Namespace, *,
              ema: bool) -> Lowered:
  _, config, is_trainable = training.variant(variant, flags.size)
  batch = flags.batch or BATCH * flags.devices
  if batch % flags.devices:
    raise Pi0RagError(f"--batch={batch} must be a multiple of --devices={flags.devices}")
  shapes = jax.eval_shape(functools.partial(registry.init, config), jax.random.key(0))
  trainable, frozen = partition.split(shapes, is_trainable)
  trainable, frozen = ({POLICY: _typed(tree, dtype)} for tree, dtype in ((trainable, "float32"), (frozen, "bfloat16")))
  optimize = optimizer.adamw(optimizer.constant(peak=1e-4, warmup_steps=10))
  state = jax.eval_shape(functools.partial(step.init_state, optimizer=optimize, ema=ema), trainable)
  data = models.input_shapes(config, batch=batch) | {"index": jax.ShapeDtypeStruct((batch,), jnp.int32)}
  train_step = devices.compile_train(functools.partial(
    step.train_step, loss_fn=training.policy_loss_of(config), optimizer=optimize, seed=0, mean=devices.mean,
    ema_decay=0.99 if ema else 0.0))
  program = train_step.lower(devices.shapes(state), devices.shapes(frozen), devices.batch_shapes(data))
  facts = {"variant": variant, "batch": batch, "parameters_GB": _gigabytes(_nbytes((trainable, frozen))),
           "trainable_GB": _gigabytes(_nbytes(trainable))}
  return Lowered(program, facts)


def _cut(config: Pi0Config, layers: int | None) -> Pi0Config:
  """Returns a model with so many layers in each tower, None: all of them."""
  if layers is None:
    return config
  return dataclasses.replace(config, **{
    name: dataclasses.replace(getattr(config, name), depth=layers) for name in ("siglip", "paligemma", "expert")})


def _memory(compiled, target: targets.Gpu | targets.Tpu) -> dict[str, Any]:
  memory = compiled.memory_analysis()
  parts = {"argument": memory.argument_size_in_bytes, "output": memory.output_size_in_bytes,
           "temporary": memory.temp_size_in_bytes, "aliased": memory.alias_size_in_bytes}
  total = parts["argument"] + parts["output"] + parts["temporary"] - parts["aliased"]
  return {**{f"{name}_GB": _gigabytes(size) for name, size in parts.items()}, "total_GB": _gigabytes(total),
          "device_GB": target.memory_GB, "fits": total < 1e9 * target.memory_GB}


def _counts(program: hlo.Program, lowered: Lowered, target: targets.Gpu | targets.Tpu) -> dict[str, Any]:
  """Returns kernels (of a TPU: fusions), before the loops and in them, and what else can be read off the text."""
  entry, *loops = program.runs
  row: dict[str, Any] = {"kernels": sum(run.times * program.kernels(run) for run in program.runs),
                         "kernels_before": program.kernels(entry)}
  if lowered.weights:
    moves = program.moves({x.size for x in jax.tree.leaves(lowered.weights) if x.size >= _LARGE})
    row |= {"trip_counts": program.trip_counts, "weight_moves": len(moves),
            "weight_moves_in_loop": sum(move.in_loop for move in moves)}
  if len(loops) == 1:  # the flow's
    row["kernels_a_step"] = program.kernels(loops[0])
  if target.compute_capability:
    return row | {"graphs": program.graphs}
  expected_ms = {run.name: run.times * program.cycles(run) / target.clock_GHz / 1e6 for run in program.runs}
  return row | {"compilers_estimate_ms": round(sum(expected_ms.values()), 2),
                "compilers_estimate_in_loops_ms": round(sum(expected_ms[run.name] for run in loops), 2)}


def _collectives(program: hlo.Program) -> dict[str, Any]:
  found = program.collectives()
  row: dict[str, Any] = {}
  for kind, (count, nbytes) in sorted(found.items()):
    row |= {f"{kind.replace('-', '_')}s": count, f"{kind.replace('-', '_')}_GB": _gigabytes(nbytes)}
  return row | {"collectives_GB": _gigabytes(sum(nbytes for _, nbytes in found.values()))} if row else row


def _cudnn_of(target: targets.Gpu | targets.Tpu):
  """Returns the block in which jax, which asks the GPU that there is whether cuDNN can attend, is told of the target.
  """
  from jax._src.cudnn import fused_attention_stablehlo as attention

  number = lambda text: tuple(map(int, text.split(".")))  # noqa: E731
  own = target.compute_capability or ""
  return mock.patch.multiple(
    attention, check_cudnn_version=lambda: 91200, check_compute_capability=lambda least: number(own) >= number(least),
    is_cuda_compute_capability_equal=lambda other: number(own) == number(other))


def _placed(tree, sharding):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _typed(tree, dtype):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), tree)


def _nbytes(tree) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _gigabytes(nbytes: float) -> float:
  return float(f"{nbytes / 1e9:.4g}")
