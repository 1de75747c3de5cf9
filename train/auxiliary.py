"""The auxiliary head of training: reads the true object positions off what the action expert sees of the prefix.

The expert reads the prefix through attention values alone, and a fresh expert attends to all tokens about evenly:
so the head takes the plain mean of the last layer's values. A head with an attention of its own, on the trunk's
output, learned the positions as well, but little of them reached the expert's first motions.

Its parameters live beside the policy's in the train state and are never exported.
"""

import jax
import jax.numpy as jnp

from pi0rag_jax.models.embedding import pool_prefix
from pi0rag_jax.models.pi0 import Pi0Config, PrefixOutput

HIDDEN = 64


def init_head(rng, config: Pi0Config, targets: int) -> dict:
  """Returns the head's parameters.

  Args:
    rng: key, consumed.
    config: of the model whose prefix it reads.
    targets: how many numbers it predicts.
  """
  hidden_key, out_key = jax.random.split(rng)
  dense = jax.nn.initializers.lecun_normal()
  width = config.paligemma.num_kv_heads * config.paligemma.head_dim
  return {
    "hidden": {"kernel": dense(hidden_key, (width, HIDDEN)), "bias": jnp.zeros(HIDDEN)},
    "out": {"kernel": dense(out_key, (HIDDEN, targets)), "bias": jnp.zeros(targets)},
  }


def predict(params: dict, prefix: PrefixOutput):
  """Returns float[B, targets], the normalized targets as read off the prefix."""
  _, values_NBSKH = prefix.kv_cache
  last_BSX = values_NBSKH[-1].reshape(*prefix.mask_BS.shape, -1)
  pooled_BX = pool_prefix(last_BSX, prefix.mask_BS)
  hidden = jax.nn.gelu(pooled_BX @ params["hidden"]["kernel"] + params["hidden"]["bias"])
  return hidden @ params["out"]["kernel"] + params["out"]["bias"]
