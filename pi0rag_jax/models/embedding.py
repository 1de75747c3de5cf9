"""What a model sees, as vectors: embeddings of images and prompt, and one pooled from them, a retrieval key.

`embed_observation` is the whole way, compiled; `pool_prefix` and `prefix_spans` serve callers that have a prefix.
"""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.paligemma import apply
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.typing import Array, Params

LANGUAGE = "language"
# `input`: what enters the first layer (openpi's embed_prefix). `hidden`: the last layer's output, after its norm.
LAYERS = ("input", "hidden")
# `mean`: over all valid tokens. `camera`: over those of each camera, one after the other. `language`: the prompt's.
# `tokens`: none, all tokens one after the other, zeros for those that are not valid.
POOLS = ("mean", "camera", LANGUAGE, "tokens")


@flax.struct.dataclass
class PrefixEmbedding:
  """Embeddings of a batch of observations."""

  tokens_BSD: Array  # [B, S, D] in the computing type; rows that are not valid hold don't-cares
  mask_BS: Array  # bool[B, S], the valid tokens
  key_BE: Array  # float32[B, E], pooled; E is D, for `camera` the number of cameras times D, for `tokens` S times D


@functools.partial(jax.jit, static_argnames=("model", "layer", "pool"))
def embed_observation(
  model: nn.Module, params: Params, obs: Observation, *, layer: str = "hidden", pool: str = "mean"
) -> PrefixEmbedding:
  """Returns the embeddings of images and prompt, and the key pooled from them. Compiled; the state is not read.

  Args:
    model: a pi0, pi0.5 or pi0-FAST network, as of `registry.network`.
    params: of the model; float32 or bfloat16.
    obs: a batch. Without a prompt the cameras are all that is embedded. A camera that is masked, or a prompt of
      padding alone, pools to zeros.
    layer: one of LAYERS; `input` spends nothing on the language model's layers.
    pool: one of POOLS.
  Raises:
    Pi0RagError: a camera is missing or of another size, or there is no prompt to pool.
  """
  if layer not in LAYERS:
    raise unknown_name("layer", layer, LAYERS)
  if pool not in POOLS:
    raise unknown_name("pool", pool, POOLS)
  if pool == LANGUAGE and obs.tokenized_prompt is None:
    raise Pi0RagError(f"pool '{LANGUAGE}' needs a tokenized prompt, the observation has none; without: mean, camera")
  if layer == "input":
    values_BSD, mask_BS, _ = apply(model, params, "embed_prefix", obs)
  else:
    prefix = apply(model, params, "prefix", obs)
    values_BSD, mask_BS = prefix.hidden_BSD, prefix.mask_BS
  spans = prefix_spans(model.config)
  if pool == "tokens":
    kept_BSD = jnp.where(mask_BS[..., None], values_BSD.astype(jnp.float32), 0.0)
    return PrefixEmbedding(values_BSD, mask_BS, kept_BSD.reshape(kept_BSD.shape[0], -1))
  if pool == "camera":
    pooled = [pool_prefix(values_BSD, mask_BS, span=spans[camera]) for camera in model.config.image_keys]
    return PrefixEmbedding(values_BSD, mask_BS, jnp.concatenate(pooled, axis=-1))
  span = spans[LANGUAGE] if pool == LANGUAGE else slice(None)
  return PrefixEmbedding(values_BSD, mask_BS, pool_prefix(values_BSD, mask_BS, span=span))


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


def prefix_spans(config: PaliGemmaConfig) -> dict[str, slice]:
  """Returns where in the prefix each camera's tokens are, by its name, and the prompt's, by 'language'."""
  tokens = config.image_tokens
  spans = {key: slice(i * tokens, (i + 1) * tokens) for i, key in enumerate(config.image_keys)}
  return spans | {LANGUAGE: slice(len(config.image_keys) * tokens, config.prefix_tokens)}
