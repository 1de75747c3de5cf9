"""`peak`: what the hardware gives to jax, and the least time that a model could take with it."""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

from eval.benchmarks import timing
from pi0rag_jax.models.flops import count_flops

# Large enough to fill an accelerator, small enough for a laptop.
SIDES = {"gpu": 8192, "tpu": 8192, "cpu": 1024}
COPY_BYTES = {"gpu": 2 << 30, "tpu": 2 << 30, "cpu": 256 << 20}
CHAINED = 64  # launches that are timed together


def peak(flags: argparse.Namespace) -> list[dict]:
  """Returns matrix TFLOP/s in bfloat16 and float32, copy TB/s, and the time of one of many small launches."""
  return [{"what": name, **values} for name, values in measure(flags.repeats).items()]


@functools.cache
def measure(repeats: int) -> dict[str, dict[str, float]]:
  """Returns the best of some turns, since a peak is what is possible."""
  backend = jax.default_backend()
  side, size = SIDES.get(backend, SIDES["cpu"]), COPY_BYTES.get(backend, COPY_BYTES["cpu"])
  product = jax.jit(lambda x: x @ x)
  matrix = {name: jnp.asarray(np.full((side, side), 1e-3), name) for name in ("bfloat16", "float32")}
  copy, block = jax.jit(lambda x: x + 1), jnp.zeros(size // 4, jnp.float32)
  small, tiny = jax.jit(lambda x: x * 1.0001), jnp.ones(8)

  def launches():
    x = tiny
    for _ in range(CHAINED):
      x = small(x)
    return x

  calls = {f"matrix_{name}": functools.partial(product, x) for name, x in matrix.items()}
  taken = timing.interleaved({**calls, "copy": lambda: copy(block), "launch": launches}, repeats=repeats)
  best_s = {name: ms.min() / 1000 for name, ms in taken.items()}
  found = {name: {"tflops": round(2 * side**3 / best_s[name] / 1e12, 4)} for name in calls}
  return {**found, "copy": {"tb_per_s": round(2 * size / best_s["copy"] / 1e12, 4)},
          "launch": {"us": round(best_s["launch"] / CHAINED * 1e6, 2)}}


def bound_ms(function, *args, dtype: str, weights: int, passes: int = 1) -> float:
  """Returns the least time of a program, by its matrix products and by its weights, in ms.

  Args:
    dtype: of the products.
    weights: bytes that each of the `passes` reads.
  """
  flops = count_flops(jax.make_jaxpr(function)(*args).jaxpr)
  found = measure(5)
  compute_s = flops / (found[f"matrix_{dtype}"]["tflops"] * 1e12)
  return 1000 * max(compute_s, passes * weights / (found["copy"]["tb_per_s"] * 1e12))
