"""How the programs of a policy are compiled."""

import jax
import jax.numpy as jnp

from pi0rag_jax.typing import Params

# A CPU multiplies bfloat16 as float32, and this pass moves the conversion of all layers' weights before the loop over
# them: 10.9 GB beside the 6.5 GB of a 3.2 B pi0, instead of 0.6 GB.
_WITHOUT_HOISTING = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


def options(params: Params) -> dict[str, str]:
  """Returns the `compiler_options` of `jax.jit` for a program that runs these parameters."""
  is_half = any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))
  return dict(_WITHOUT_HOISTING) if is_half and jax.default_backend() == "cpu" else {}
