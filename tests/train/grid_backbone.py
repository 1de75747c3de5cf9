"""A backbone without anything to compile for long: the mean colour of every cell of a grid over each picture."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from pi0rag_jax.models.backbones.base import Backbone

CELLS, PIXELS = 4, 32


@dataclasses.dataclass(frozen=True)
class Grid(Backbone):
  image_keys: tuple[str, ...] = ()
  gain: float = 1.0

  @property
  def image_size(self):
    return PIXELS, PIXELS

  @property
  def max_token_len(self):
    return 0

  @property
  def hidden_size(self):
    return len(self.image_keys) * CELLS * CELLS * 3

  def init(self, rng):
    return {"gain": jnp.float32(self.gain)}

  def vision_tower(self, params, image_BHWC):
    side = PIXELS // CELLS
    cells = image_BHWC.reshape(-1, CELLS, side, CELLS, side, 3)
    return params["gain"] * cells.mean(axis=(2, 4)).reshape(len(cells), -1, 3)

  def word_embedding(self, params, tokens_BL):
    raise NotImplementedError

  def text_tower(self, params, words_BLD, mask_BL):
    raise NotImplementedError

  def encode(self, params, obs):
    towers = [self.vision_tower(params, obs.images[name]) for name in self.image_keys]
    return jnp.concatenate([tokens.reshape(len(tokens), -1) for tokens in towers], axis=-1)


def expected_features(pictures_FHWC: np.ndarray) -> np.ndarray:
  """Returns the features of uint8 pictures of one camera."""
  side = PIXELS // CELLS
  cells = (pictures_FHWC / 127.5 - 1).reshape(-1, CELLS, side, CELLS, side, 3)
  return cells.mean(axis=(2, 4)).reshape(len(pictures_FHWC), -1)
