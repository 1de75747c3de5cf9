"""The vision-language model inside pi0, pi0.5 and pi0-FAST as a backbone: its pooled prefix is the features.

Parameters are those of an openpi checkpoint, whole: the caller reads them with `openpi.checkpoints.load_params` and
`template=jax.eval_shape(backbone.init, key)`.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.models import embedding, registry
from pi0rag_jax.models.backbones.base import Backbone, register_backbone
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.paligemma import apply
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.typing import Array, Params


@register_backbone("paligemma")
@dataclasses.dataclass(frozen=True)
class PaliGemmaBackbone(Backbone):
  """See `embedding` for the layers and pools."""

  config: PaliGemmaConfig  # of any family, such as models.registry.model("pi05")
  layer: str = "hidden"
  pool: str = "mean"

  def __post_init__(self):
    if not isinstance(self.config, PaliGemmaConfig):
      raise Pi0RagError(f"backbone 'paligemma' takes a model's configuration, got {self.config!r}; by name: "
                        "models.registry.model")
    if self.layer not in embedding.LAYERS:
      raise unknown_name("layer", self.layer, embedding.LAYERS)
    if self.pool not in embedding.POOLS:
      raise unknown_name("pool", self.pool, embedding.POOLS)

  @property
  def hidden_size(self) -> int:
    return self.config.paligemma.width * self.pooled_tokens

  @property
  def pooled_tokens(self) -> int:
    """Vectors of the model's width that the features consist of, one after the other."""
    return {"camera": len(self.image_keys), "tokens": self.config.prefix_tokens}.get(self.pool, 1)

  @property
  def image_keys(self) -> tuple[str, ...]:
    return self.config.image_keys

  @property
  def image_size(self) -> tuple[int, int]:
    return self.config.image_size

  @property
  def max_token_len(self) -> int:
    return self.config.max_token_len

  def init(self, rng) -> Params:
    return registry.init(self.config, rng)

  def vision_tower(self, params: Params, image_BHWC) -> Array:
    return self._apply(params, lambda model: model.PaliGemma.img(image_BHWC))

  def word_embedding(self, params: Params, tokens_BL) -> Array:
    return self._apply(params, lambda model: model.PaliGemma.llm.embed(tokens_BL))

  def text_tower(self, params: Params, words_BLD, mask_BL) -> Array:
    """Returns the language model's last layer [B, L, D]; every word sees every other one, as in the prefix."""
    ar_mask_L = jnp.zeros(mask_BL.shape[1], bool)
    encode = lambda model: model.PaliGemma.encode_prefix(words_BLD, mask_BL, ar_mask_L)  # noqa: E731
    return self._apply(params, encode).hidden_BSD

  def encode(self, params: Params, obs: Observation) -> Array:
    model = registry.network(self.config)
    return embedding.embed_observation(model, params, obs, layer=self.layer, pool=self.pool).key_BE

  def describe(self) -> dict[str, Any]:
    return super().describe() | {"family": type(self.config).__name__}

  def _apply(self, params: Params, method) -> Any:
    return apply(registry.network(self.config), params, method)
