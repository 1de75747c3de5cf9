"""The auxiliary head of training: reads the true object positions off the prefix, so that the trunk has to see them.

Its parameters live beside the policy's in the train state and are never exported.
"""

import jax
import jax.numpy as jnp

# Each query pools one thing: the object, the goal, the gripper; one to spare.
QUERIES = 4
HIDDEN = 64
# As in the attention of the model: a masked token gets no weight, but stays finite.
MASKED = -1e30


def init_head(rng, width: int, targets: int) -> dict:
  """Returns the head's parameters.

  Args:
    rng: key, consumed.
    width: D of the prefix.
    targets: how many numbers it predicts.
  """
  query_key, hidden_key, out_key = jax.random.split(rng, 3)
  dense = jax.nn.initializers.lecun_normal()
  return {
    "query_DQ": dense(query_key, (width, QUERIES)),
    "hidden": {"kernel": dense(hidden_key, (QUERIES * width, HIDDEN)), "bias": jnp.zeros(HIDDEN)},
    "out": {"kernel": dense(out_key, (HIDDEN, targets)), "bias": jnp.zeros(targets)},
  }


def predict(params: dict, hidden_BSD, mask_BS):
  """Returns float[B, targets], the normalized targets as read off the prefix.

  Args:
    params: of `init_head`.
    hidden_BSD: float[B, S, D], the trunk's output at the prefix tokens.
    mask_BS: bool[B, S], real tokens.
  """
  scores_BSQ = jnp.einsum("bsd,dq->bsq", hidden_BSD, params["query_DQ"])
  weights_BSQ = jax.nn.softmax(jnp.where(mask_BS[..., None], scores_BSQ, MASKED), axis=1)
  pooled_BQD = jnp.einsum("bsq,bsd->bqd", weights_BSQ, hidden_BSD)
  flat = pooled_BQD.reshape(pooled_BQD.shape[0], -1)
  hidden = jax.nn.gelu(flat @ params["hidden"]["kernel"] + params["hidden"]["bias"])
  return hidden @ params["out"]["kernel"] + params["out"]["bias"]
