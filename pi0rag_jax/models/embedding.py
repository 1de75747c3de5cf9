"""One vector of what a policy sees, pooled from its prefix tokens: the memory's retrieval key."""

import jax.numpy as jnp

from pi0rag_jax.models.pi0_config import Pi0Config

LANGUAGE = "language"


def pool_prefix(values_BSD, mask_BS, *, span: slice = slice(None)):
  """Returns the mean over the valid tokens, float32[B, D]; zeros where a row has none.

  Args:
    values_BSD: float[B, S, D], `hidden_BSD` or `tokens_BSD` of a PrefixOutput.
    mask_BS: bool[B, S], the valid tokens.
    span: the tokens to pool, such as one of `prefix_spans`.
  """
  weight_BS1 = mask_BS[:, span, None].astype(jnp.float32)
  # A masked row may hold anything, so it is replaced, not multiplied by zero.
  kept_BSD = jnp.where(weight_BS1 > 0, values_BSD[:, span].astype(jnp.float32), 0.0)
  return kept_BSD.sum(axis=1) / jnp.maximum(weight_BS1.sum(axis=1), 1.0)


def prefix_spans(config: Pi0Config) -> dict[str, slice]:
  """Returns where in the prefix each camera's tokens are, by its name, and the prompt's, by 'language'."""
  tokens = config.image_tokens
  spans = {key: slice(i * tokens, (i + 1) * tokens) for i, key in enumerate(config.image_keys)}
  return spans | {LANGUAGE: slice(len(config.image_keys) * tokens, config.prefix_tokens)}
