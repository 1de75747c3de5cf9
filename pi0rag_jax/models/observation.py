"""What a model sees: images, state and a tokenized prompt, as one pytree."""

from collections.abc import Mapping

import flax.struct
import jax.numpy as jnp

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.typing import Array


def to_float_image(image) -> Array:
  """Returns the image as float32 in [-1, 1]; uint8 is scaled, anything else is taken to be in range."""
  if image.dtype == jnp.uint8:
    return image.astype(jnp.float32) / 255.0 * 2.0 - 1.0
  return image.astype(jnp.float32)


@flax.struct.dataclass
class Observation:
  """A batch of model inputs; dictionaries are keyed by camera."""

  images: dict[str, Array]  # float32[B, H, W, 3] in [-1, 1]
  image_masks: dict[str, Array]  # bool[B], False where the camera is missing
  state: Array  # float32[B, P], normalized
  tokenized_prompt: Array | None = None  # int32[B, L]
  tokenized_prompt_mask: Array | None = None  # bool[B, L]
  # Of pi0-FAST, whose prompt goes on with the action's tokens while training.
  token_ar_mask: Array | None = None  # int32[B, L], 1 where a token does not see its followers
  token_loss_mask: Array | None = None  # bool[B, L], the tokens to learn

  @classmethod
  def from_dict(cls, data: Mapping) -> "Observation":
    """Returns the observation of openpi's dictionary form.

    Args:
      data: `image` {camera: uint8 or float32 [B, H, W, 3]}, `state` [B, P], and optionally `image_mask`
        {camera: bool[B]} (a camera without one counts as present) and `tokenized_prompt` int32[B, L], which
        comes with `tokenized_prompt_mask` bool[B, L]; pi0-FAST adds `token_ar_mask` and `token_loss_mask`.
    """
    if ("tokenized_prompt" in data) != ("tokenized_prompt_mask" in data):
      raise Pi0RagError("observation: tokenized_prompt and tokenized_prompt_mask must be given together")
    missing = [key for key in ("image", "state") if key not in data]
    if missing:
      raise Pi0RagError(f"observation: no {' and no '.join(missing)} in a dictionary of {sorted(data)}")
    images = {name: to_float_image(image) for name, image in data["image"].items()}
    masks = data.get("image_mask", {})
    present = {name: masks.get(name, jnp.ones(image.shape[0], bool)) for name, image in images.items()}
    return cls(
      images=images, image_masks=present, state=data["state"].astype(jnp.float32),
      tokenized_prompt=data.get("tokenized_prompt"), tokenized_prompt_mask=data.get("tokenized_prompt_mask"),
      token_ar_mask=data.get("token_ar_mask"), token_loss_mask=data.get("token_loss_mask"))
