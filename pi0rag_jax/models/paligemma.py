"""What all families share: the two towers under openpi's names, the prefix of images and prompt, and its pass."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import attention
from pi0rag_jax.models.gemma import Gemma, KeysValues
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.models.siglip import Siglip
from pi0rag_jax.typing import Array, Params


@flax.struct.dataclass
class PrefixOutput:
  """What the prefix leaves for the action expert or the decoder, the memory and auxiliary heads."""

  hidden_BSD: Array | None  # [B, S, D], the last layer after its norm; rows that are not valid hold don't-cares
  mask_BS: Array  # bool[B, S], the valid tokens
  kv_cache: KeysValues  # (keys, values), each [depth, B, S, K, H], packed a tuple of [B, S, K, H]
  tokens_BSD: Array  # [B, S, D], image and prompt embeddings before the first layer


class PaliGemma(nn.Module):
  """The image tower and the language model, with the streams that the configuration has."""

  config: PaliGemmaConfig
  # See Gemma.
  rotary_dtype: jnp.dtype | None = None

  def setup(self):
    c = self.config
    self.img = Siglip(c.siglip, c.paligemma.width, c.compute_dtype, c.unroll, c.remat, c.packed, c.kernel)
    self.llm = Gemma(c.experts, c.vocab_size, c.compute_dtype, c.unroll, self.rotary_dtype, c.remat, c.packed,
                     c.kernel)

  def embed_images(self, obs: Observation):
    """Returns {camera: [B, tokens, D]}; the cameras go through the tower as one batch."""
    keys = self.config.image_keys
    missing = [key for key in keys if key not in obs.images]
    if missing:
      raise Pi0RagError(f"observation lacks camera(s) {', '.join(missing)}; it has {', '.join(obs.images)}")
    for key in keys:
      seen = obs.images[key].shape[1:3]
      if seen != tuple(self.config.image_size):
        raise Pi0RagError(f"camera {key} gives {seen} pixels, the model takes {self.config.image_size}")
    image_CBHW3 = jnp.stack([obs.images[key] for key in keys])
    tokens_XSD = self.img(image_CBHW3.reshape(-1, *image_CBHW3.shape[2:]))
    tokens_CBSD = tokens_XSD.reshape(*image_CBHW3.shape[:2], *tokens_XSD.shape[1:])
    return dict(zip(keys, tokens_CBSD))

  def embed_prefix(self, obs: Observation):
    """Returns (tokens_BSD, mask_BS): cameras in the configured order, then the prompt."""
    tokens, masks = [], []
    for key, camera_BSD in self.embed_images(obs).items():
      tokens.append(camera_BSD)
      masks.append(jnp.broadcast_to(obs.image_masks[key][:, None], camera_BSD.shape[:2]))
    if obs.tokenized_prompt is not None:
      tokens.append(self.llm.embed(obs.tokenized_prompt))
      masks.append(obs.tokenized_prompt_mask)
    return jnp.concatenate(tokens, axis=1), jnp.concatenate(masks, axis=1)

  def encode_prefix(self, tokens_BSD, mask_BS, ar_mask, *, reserve: int = 0, keys_only: bool = False) -> PrefixOutput:
    """Returns the prefix pass: the first stream alone, its keys and values kept.

    Args:
      tokens_BSD, mask_BS: as of `embed_prefix`.
      ar_mask: see `attention.attention_mask`.
      reserve: number of empty, masked slots that the attention is to find beside the prefix. They change
        nothing but the don't-cares of rows without a valid key.
      keys_only: static; the last layer's output is not wanted, and None if the parameters are packed.
    """
    mask_BSX = jnp.pad(attention.attention_mask(mask_BS, ar_mask), ((0, 0), (0, 0), (reserve, 0)))
    c = self.config.paligemma
    empty = jnp.zeros((c.depth, mask_BS.shape[0], reserve, c.num_kv_heads, c.head_dim), self.config.compute_dtype)
    streams = (tokens_BSD, *[None] * (len(self.config.experts) - 1))
    outputs, kv_cache = self.llm(
      streams, attention.token_positions(mask_BS), mask_BSX, cache=(empty, empty) if reserve else None,
      keys_only=keys_only)
    return PrefixOutput(outputs[0], mask_BS, kv_cache, tokens_BSD)


def apply(model: nn.Module, params: Params, method, *args, **kwargs) -> Any:
  """Returns what a method of a network, or the one of that name, answers; flax's type fits no one method."""
  return model.apply({"params": params}, *args, method=method, **kwargs)


def example_observation(config: PaliGemmaConfig, batch: int = 1) -> Observation:
  """Returns an observation of zeros in the model's shapes."""
  height, width = config.image_size
  return Observation(
    images={key: jnp.zeros((batch, height, width, 3)) for key in config.image_keys},
    image_masks={key: jnp.ones(batch, bool) for key in config.image_keys},
    state=jnp.zeros((batch, config.state_size)),
    tokenized_prompt=jnp.zeros((batch, config.max_token_len), jnp.int32),
    tokenized_prompt_mask=jnp.ones((batch, config.max_token_len), bool))
