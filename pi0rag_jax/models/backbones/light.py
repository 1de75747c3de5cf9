"""The light encoder: MobileNetV3-small's 576 channels to 256 to 512 numbers per camera, of length 1; below 5 MB.

The prompt, a bag of words, is added at the 256. Its variables are `params` and, of the batch norms, `batch_stats`; it
is frozen, as every backbone is.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.models.backbones.base import Backbone, register_backbone
from pi0rag_jax.models.backbones.mobilenet import MobileNetV3Small
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.typing import Array, Params

HIDDEN, OUT = 256, 512
POOLS = ("camera", "mean")
# Of ImageNet in [0, 1], as torchvision's weights expect.
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TINY = 1e-12


class LightNetwork(nn.Module):
  """The network; cameras share all weights."""

  vocab_size: int

  def setup(self):
    self.trunk = MobileNetV3Small()
    self.project = nn.Dense(HIDDEN)
    self.out = nn.Dense(OUT)
    if self.vocab_size:
      self.words = nn.Embed(self.vocab_size, HIDDEN)

  def see(self, image_BHWC):
    """Returns the feature map as tokens [B, S, 576] of pictures in [-1, 1]."""
    scaled = (image_BHWC / 2 + 0.5 - jnp.asarray(IMAGE_MEAN)) / jnp.asarray(IMAGE_STD)
    x_BHWC = self.trunk(scaled)
    return x_BHWC.reshape(x_BHWC.shape[0], -1, x_BHWC.shape[-1])

  def embed(self, tokens_BL):
    """Returns the words [B, L, 256]."""
    return self.words(tokens_BL)

  def features(self, image_CBHW3, mask_CB, tokens_BL, mask_BL):
    """Returns [C, B, 512] of C cameras; zeros where one is masked."""
    C, B = image_CBHW3.shape[:2]
    tokens_XSD = self.see(image_CBHW3.reshape(C * B, *image_CBHW3.shape[2:]))
    hidden_CBD = self.project(tokens_XSD.mean(axis=1)).reshape(C, B, -1)
    if self.vocab_size:
      hidden_CBD = hidden_CBD + mean_word(self.embed(tokens_BL), mask_BL)
    return self.out(nn.hard_swish(hidden_CBD)) * mask_CB[..., None]


@register_backbone("light")
@dataclasses.dataclass(frozen=True)
class LightBackbone(Backbone):
  """See the head of this file."""

  image_keys: tuple[str, ...] = ("base_0_rgb", "left_wrist_0_rgb")
  image_size: tuple[int, int] = (224, 224)
  vocab_size: int = 0  # of the prompt's tokenizer; 0 reads no prompt
  max_token_len: int = 0
  pool: str = "camera"  # one after the other; `mean`: over those that are there

  def __post_init__(self):
    if self.pool not in POOLS:
      raise unknown_name("pool", self.pool, POOLS)
    if not self.image_keys or bool(self.vocab_size) != bool(self.max_token_len):
      raise Pi0RagError(f"light backbone: cameras {self.image_keys}, vocab_size {self.vocab_size}, max_token_len "
                        f"{self.max_token_len}; it needs a camera, and either both of the prompt's sizes or none")

  @property
  def hidden_size(self) -> int:
    return OUT * (len(self.image_keys) if self.pool == "camera" else 1)

  def init(self, rng) -> Params:
    return LightNetwork(self.vocab_size).init(rng, *self._example(), method="features")

  def vision_tower(self, params: Params, image_BHWC) -> Array:
    return self._apply(params, "see", image_BHWC)

  def word_embedding(self, params: Params, tokens_BL) -> Array:
    self._check_prompt(tokens_BL)
    return self._apply(params, "embed", tokens_BL)

  def text_tower(self, params: Params, words_BLD, mask_BL) -> Array:
    """Returns the mean word [B, 256]."""
    return mean_word(words_BLD, mask_BL)

  def encode(self, params: Params, obs: Observation) -> Array:
    features_CBD = self._apply(params, "features", *self._inputs(obs))
    return self._pooled(features_CBD, obs)

  def _pooled(self, features_CBD, obs: Observation):
    """Returns float32[B, D] of length 1; zeros where no camera is there."""
    if self.pool == "camera":
      features_BD = jnp.concatenate(list(features_CBD), axis=-1)
    else:
      features_BD = features_CBD.sum(axis=0)
    # The root of a sum of squares has no gradient at zero.
    square_B1 = jnp.sum(jnp.square(features_BD), axis=-1, keepdims=True)
    return features_BD * jax.lax.rsqrt(jnp.maximum(square_B1, _TINY**2))

  def _inputs(self, obs: Observation):
    images = self.image_processor(obs.images)
    if self.vocab_size:
      self._check_prompt(obs.tokenized_prompt)
    mask_CB = jnp.stack([obs.image_masks[name] for name in self.image_keys])
    return jnp.stack(list(images.values())), mask_CB, obs.tokenized_prompt, obs.tokenized_prompt_mask

  def _check_prompt(self, tokens_BL) -> None:
    if not self.vocab_size or tokens_BL is None:
      raise Pi0RagError(f"light backbone: vocab_size is {self.vocab_size} and the prompt is "
                        f"{'missing' if tokens_BL is None else 'there'}; both or neither")

  def _example(self):
    tokens_1L = jnp.zeros((1, self.max_token_len), jnp.int32) if self.vocab_size else None
    cameras = len(self.image_keys)
    mask_1L = None if tokens_1L is None else jnp.ones(tokens_1L.shape, bool)
    return jnp.zeros((cameras, 1, *self.image_size, 3)), jnp.ones((cameras, 1), bool), tokens_1L, mask_1L

  def _apply(self, params: Params, method: str, *args) -> Any:
    return LightNetwork(self.vocab_size).apply(params, *args, method=method)


def mean_word(words_BLD, mask_BL):
  """Returns the mean over the words that are there, [B, D]; zeros without any."""
  kept_BLD = jnp.where(mask_BL[..., None], words_BLD, 0.0)
  return kept_BLD.sum(axis=1) / jnp.maximum(mask_BL.sum(axis=1, keepdims=True), 1)
