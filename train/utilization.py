"""How much of the accelerator's peak the training uses: the model's FLOPs of a step, counted from its program.

Counted are matrix products and convolutions, as in PaLM's model FLOP utilization (arXiv 2204.02311, appendix B):
forward and backward pass, without what rematerialization computes again.
"""

from collections.abc import Mapping

import jax
from jax.extend import core

from pi0rag_jax.models.flops import count_flops
from pi0rag_jax.typing import Params
from train.step import LossFn

# Dense bf16 FLOP/s of one device, by the beginning of what jax calls its kind; the first that fits counts.
PEAK_FLOPS = {
  # NVIDIA's data sheets, of which the numbers with sparsity are twice these.
  "NVIDIA B200": 2250e12,
  "NVIDIA H200 NVL": 835e12,
  "NVIDIA H200": 989e12,
  "NVIDIA H100 NVL": 835e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H100": 989e12,
  "NVIDIA A100": 312e12,
  "NVIDIA L40S": 362e12,
  "NVIDIA GeForce RTX 4090": 165e12,  # with sums in float32: Ada architecture whitepaper, appendix A
  # cloud.google.com/tpu/docs, one page per version; a device is a chip.
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,  # v5e
  "TPU v5e": 197e12,
  "TPU v5": 459e12,  # v5p
  "TPU v6 lite": 918e12,  # v6e
  "TPU v6e": 918e12,
}
_KEEP_ALL = jax.checkpoint_policies.everything_saveable


def peak_flops(device_kind: str) -> float | None:
  """Returns the dense bf16 FLOP/s of a device, None where they are not known."""
  return next((peak for name, peak in PEAK_FLOPS.items() if device_kind.startswith(name)), None)


def readings(flops: float, steps_per_s: float) -> dict[str, float]:
  """Returns the model's TFLOP/s on each device, and `mfu`, their share of the device's peak where it is known."""
  achieved = flops * steps_per_s / jax.device_count()
  peak = peak_flops(jax.devices()[0].device_kind)
  return {"tflops_per_device": achieved / 1e12} | ({"mfu": achieved / peak} if peak else {})


def step_flops(loss_fn: LossFn, params: Params, frozen: Params, batch: Mapping) -> float:
  """Returns the FLOPs of one step's loss and gradients, on all processes together; nothing is computed.

  Args:
    loss_fn: of the step.
    params: the trainable ones, which gradients are taken of.
    frozen: the others.
    batch: this process's part.
  """
  shapes = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)  # noqa: E731
  key = jax.eval_shape(lambda: jax.random.key(0))
  args = (shapes(params), shapes(frozen), shapes(batch), key)
  loss = core.jaxpr_as_fun(_without_remat(jax.make_jaxpr(lambda *args: loss_fn(*args)[0])(*args)))
  leaves, rest = jax.tree.leaves(args[0]), jax.tree.leaves(args[1:])
  gradient = jax.make_jaxpr(jax.value_and_grad(lambda leaves, rest: loss(*leaves, *rest)[0]))(leaves, rest)
  return count_flops(gradient.jaxpr) * jax.process_count()


def _without_remat(value):
  """Returns a program, or what may hold one, that keeps for its backward pass all that it computes."""
  if isinstance(value, core.ClosedJaxpr):
    return value.replace(jaxpr=_without_remat(value.jaxpr))
  if isinstance(value, tuple):
    return tuple(_without_remat(x) for x in value) if type(value) is tuple else value
  if not isinstance(value, core.Jaxpr):
    return value
  changed = []
  for eqn in value.eqns:
    params = {name: _without_remat(x) for name, x in eqn.params.items()}
    if "prevent_cse" in params:  # jax.checkpoint's
      params["policy"] = _KEEP_ALL
    changed.append(eqn.replace(params=params))
  return value.replace(eqns=changed)
