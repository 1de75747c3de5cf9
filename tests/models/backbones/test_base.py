import dataclasses

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.backbones import base


@dataclasses.dataclass(frozen=True)
class Brightness(base.Backbone):
  """One's own backbone: how bright each camera is."""

  hidden_size, image_keys, image_size, max_token_len = 1, ("front",), (2, 2), 0

  def init(self, rng):
    return {"gain": np.float32(2.0)}

  def vision_tower(self, params, image_BHWC):
    return params["gain"] * image_BHWC.reshape(len(image_BHWC), -1, 3)

  def word_embedding(self, params, tokens_BL):
    raise NotImplementedError

  text_tower = word_embedding

  def encode(self, params, obs):
    return self.vision_tower(params, obs.images["front"]).mean(axis=(1, 2))[:, None]


@pytest.fixture
def registered(monkeypatch):
  monkeypatch.setattr(base, "BACKBONES", dict(base.BACKBONES))
  return base.register_backbone("brightness")(Brightness)


def test_a_backbone_of_ones_own(registered):
  made = base.backbone("brightness")
  assert isinstance(made, registered) and made.describe() == {"backbone": "brightness"}
  tokens = made.encode_images(made.init(None), {"front": np.full((1, 2, 2, 3), 255, np.uint8), "wrist": None})
  np.testing.assert_array_equal(tokens["front"], np.full((1, 4, 3), 2.0))
  with pytest.raises(Pi0RagError, match="there is a backbone 'brightness' already"):
    base.register_backbone("brightness")(registered)


def test_pictures_are_checked(registered):
  made = base.backbone("brightness")
  with pytest.raises(Pi0RagError, match=r"camera front gives \(4, 2, 3\), the backbone takes \(2, 2, 3\): resize"):
    made.image_processor({"front": np.zeros((1, 4, 2, 3), np.uint8)})
  with pytest.raises(Pi0RagError, match=r"unknown camera 'front'.*Valid names: wrist"):
    made.image_processor({"wrist": np.zeros((1, 2, 2, 3), np.uint8)})


def test_names_are_checked(registered):
  with pytest.raises(Pi0RagError, match=r"unknown backbone 'brightnes'. Did you mean 'brightness'\?"):
    base.backbone("brightnes")
  with pytest.raises(Pi0RagError, match=r"unknown field of the backbone 'brightness' 'size'"):
    base.backbone("brightness", size=2)
  with pytest.raises(Pi0RagError, match="'other': int must be a frozen dataclass derived from Backbone"):
    base.register_backbone("other")(int)
