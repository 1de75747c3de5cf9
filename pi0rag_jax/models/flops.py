"""FLOPs of a program, counted from its matrix products and convolutions; nothing is computed or compiled.

XLA's own cost analysis is not used: it counts the body of a scan once, whatever its length, and our layers are scanned
(tests/train/test_utilization.py shows it).
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.extend import core

from pi0rag_jax.models import family, pi0, pi0_fast
from pi0rag_jax.models.paligemma import apply, example_observation
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.typing import Params


def by_stage(sizes: PaliGemmaConfig, params: Params, *, steps: int) -> dict[str, float]:
  """Returns the FLOPs of a decision's stages: batch 1, all cameras, the longest prompt.

  `vision` is a part of `encode`; `decode` is all steps of the flow, of a pi0-FAST `token` one token that it writes.

  Args:
    params: shapes of the parameters, in openpi's tree.
    steps: of the flow, or at most so many tokens.
  Errors: flax's own where shapes and sizes differ.
  """
  observation = jax.eval_shape(lambda: example_observation(sizes))
  model: Any = family.of(sizes).network(sizes)
  images = lambda params, seen: apply(model, params, lambda network, o: network.PaliGemma.embed_images(o), seen)  # noqa: E731
  vision = count_flops(jax.make_jaxpr(images)(params, observation).jaxpr)
  if family.of(sizes).writes_tokens:
    encode = functools.partial(pi0_fast.encode_prefix, cast(pi0_fast.Pi0Fast, model), reserve=steps)
    prefix_jaxpr, prefix = jax.make_jaxpr(encode, return_shape=True)(params, observation)
    write = functools.partial(pi0_fast.write_tokens, model, max_decoding_steps=steps)
    loops = [eqn for eqn in jax.make_jaxpr(write)(params, prefix).jaxpr.eqns if eqn.primitive.name == "while"]
    last = {"token": sum(count_flops(inner) for eqn in loops for inner in _programs(eqn.params))}
  else:
    prefix_jaxpr, prefix = jax.make_jaxpr(functools.partial(pi0.encode_prefix, model), return_shape=True)(
      params, observation)
    noise = jax.ShapeDtypeStruct((1, sizes.action_horizon, sizes.action_dim), jnp.float32)
    denoise = functools.partial(pi0.denoise, model, num_steps=steps)
    last = {"decode": count_flops(jax.make_jaxpr(denoise)(params, prefix, observation.state, noise).jaxpr)}
  return {"vision": vision, "encode": count_flops(prefix_jaxpr.jaxpr), **last}


def count_flops(jaxpr: core.Jaxpr) -> float:
  """Returns the FLOPs of a program's matrix products and convolutions; a loop of unknown length counts once."""
  total = 0.0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      total += _dot_flops(eqn)
    elif eqn.primitive.name == "conv_general_dilated":
      total += _convolution_flops(eqn)
    elif eqn.primitive.name == "cond":
      total += max(count_flops(branch) for branch in _programs(eqn.params))
    else:
      total += eqn.params.get("length", 1) * sum(count_flops(inner) for inner in _programs(eqn.params))
  return total


def _dot_flops(eqn) -> float:
  (contracted, _), _ = eqn.params["dimension_numbers"]
  left = eqn.invars[0].aval.shape
  return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution_flops(eqn) -> float:
  kernel = eqn.invars[1].aval.shape
  outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
  return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / outputs


def _programs(params: Mapping) -> list[core.Jaxpr]:
  """Returns the programs within an equation, such as a loop's body."""
  values = [x for value in params.values() for x in (value if isinstance(value, tuple) else (value,))]
  closed = [x.jaxpr if isinstance(x, core.ClosedJaxpr) else x for x in values]
  return [x for x in closed if isinstance(x, core.Jaxpr)]
