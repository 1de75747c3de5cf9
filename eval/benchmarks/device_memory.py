"""What sampling a chunk takes on the device: parameters, inputs, output, and what the compiled program needs beside.

The compiler says it of shapes alone, so a model can be asked about that this machine could not hold. It speaks for the
backend that compiles, and lays buffers out otherwise for another one. A CPU would keep a float32 copy of all bfloat16
weights beside them; there the program is compiled in float32 instead, which needs twice the temporary bytes of
bfloat16 and no copies. Where the backend counts its bytes, the chunk is sampled too, and the most in use is reported.
"""

import argparse
import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from eval.benchmarks import models
from pi0rag_jax.models import packing, pi0
from pi0rag_jax.models.dense import FP8, TURNED
from pi0rag_jax.models.pi0_config import Pi0Config
from pi0rag_jax.policy import compiling


def rows(flags: argparse.Namespace) -> list[dict]:
  """Returns a row for each number of cameras, in rising order since the most in use is of all before."""
  config = dataclasses.replace(models.SIZES[flags.size], attention_kernel=flags.kernel, packed=True,
                               aligned=compiling.aligns())
  compiling.check_layout(config, None)
  return [_row(config, cameras, flags) for cameras in sorted(flags.cameras)]


def shapes_of(config: Pi0Config) -> dict[str, Any]:
  """Returns the shapes and types of a model's parameters, packed as `packing.pack` lays them out where it is."""
  shapes = jax.eval_shape(functools.partial(pi0.init, config), jax.random.key(0))
  stored = lambda tree, dtype: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)  # noqa: E731
  projections = "float32" if config.aligned else config.compute_dtype
  return {name: stored(part, config.compute_dtype if name == "PaliGemma" else projections)
          for name, part in shapes.items()}


# How `packing.WEIGHTS` store matrices.
STORED = {"int8": jnp.int8, "w8a8": jnp.int8, "fp8": FP8, "bfloat16": jnp.bfloat16}


def quantized_shapes(params: dict[str, Any], weights: str, *, in_layers: bool = False) -> dict[str, Any]:
  """Returns the shapes of packed parameters with the matrices of the layers stored as `weights` of STORED."""
  if in_layers and "kernel" in params and params["kernel"].ndim == 2:
    kernel, rest = params["kernel"], {name: part for name, part in params.items() if name != "kernel"}
    turned = weights == "w8a8"
    stored = jax.ShapeDtypeStruct(kernel.shape[::-1] if turned else kernel.shape, STORED[weights])
    return {**rest, TURNED if turned else "kernel": stored,
            "scale": jax.ShapeDtypeStruct(kernel.shape[1:], jnp.float32)}
  layers, norms = ("layers_", "encoderblock_"), ("pre_attention_norm", "pre_ffw_norm")
  inside = lambda name: (in_layers or name.startswith(layers)) and not name.startswith(norms)  # noqa: E731
  return {name: quantized_shapes(part, weights, in_layers=inside(name)) if isinstance(part, dict) else part
          for name, part in params.items()}


def _row(config: Pi0Config, cameras: int, flags: argparse.Namespace) -> dict:
  config, obs = models.with_cameras(config, models.observation(config, batch=1), cameras)
  noise_BTA, params = models.chunk(config, batch=1), shapes_of(config)
  start = time.perf_counter()
  compiled_config = dataclasses.replace(config, dtype="float32") if jax.default_backend() == "cpu" else config
  compiled = _compile(compiled_config, obs, noise_BTA, flags.steps[0])
  compile_s = time.perf_counter() - start
  memory = compiled.memory_analysis()
  assert memory is not None, "this backend does not say what memory a program takes"
  # Counted here: the program leaves out arguments that it does not read, which stay on the device all the same.
  parts = {"parameters": _nbytes(params), "inputs": _nbytes((obs, noise_BTA)),
           "temporary": memory.temp_size_in_bytes, "output": memory.output_size_in_bytes}
  parts["total"] = sum(parts.values())
  row = {"what": "device", "size": flags.size, "cameras": cameras, "batch": 1, "steps": flags.steps[0],
         "backend": jax.default_backend(), **{f"{name}_MB": round(size / 1e6, 3) for name, size in parts.items()},
         "compiled_in": compiled_config.dtype, "compile_s": round(compile_s, 1)}
  if peak_bytes() is not None:
    plain = dataclasses.replace(config, packed=False, aligned=False)
    packed, _ = packing.pack(models.params(plain), plain, aligned=config.aligned)
    jax.block_until_ready(compiled(jax.device_put(packed), obs, noise_BTA))
    row["peak_MB"] = round((peak_bytes() or 0) / 1e6, 3)
  return row


def _compile(config: Pi0Config, obs, noise_BTA, steps: int):
  model = pi0.Pi0(config)
  sample = jax.jit(functools.partial(pi0.sample_actions, model, num_steps=steps))
  return sample.lower(shapes_of(config), obs, noise_BTA).compile()


def _nbytes(tree) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def peak_bytes() -> int | None:
  """Returns the most bytes that were in use on the device, None where the backend does not count them."""
  return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
