import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.backbones import base, light, mobilenet
from pi0rag_jax.models.observation import Observation

PIXELS, BATCH = 32, 3


@pytest.fixture(scope="module")
def made():
  return base.backbone("light", image_keys=("front", "wrist"), image_size=(PIXELS, PIXELS), vocab_size=16,
                       max_token_len=4)


def draw_params(made):
  """Returns random variables; the variances of the batch norms are one."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(made.init, jax.random.key(0))

  def draw(path, x):
    spread = 1.0 / np.sqrt(max(np.prod(x.shape[:-1]), 1))
    return np.ones(x.shape, np.float32) if "var" in str(path[-1]) else rng.normal(0, spread, x.shape).astype(x.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def params(made):
  return draw_params(made)


@pytest.fixture(scope="module")
def obs(made):
  rng = np.random.default_rng(1)
  return Observation(
    images={name: jnp.asarray(rng.uniform(-1, 1, (BATCH, PIXELS, PIXELS, 3)), jnp.float32) for name in made.image_keys},
    image_masks={"front": jnp.ones(BATCH, bool), "wrist": jnp.array([True, False, True])},
    state=jnp.zeros((BATCH, 2)), tokenized_prompt=jnp.asarray(rng.integers(0, 16, (BATCH, 4)), jnp.int32),
    tokenized_prompt_mask=jnp.array([[True] * 4, [True] + [False] * 3, [True, True, False, False]]))


@pytest.fixture(scope="module")
def encode(made, params):
  return functools.partial(jax.jit(made.encode), params)


def test_features_are_of_length_one_and_a_masked_camera_is_zero(made, encode, obs):
  features_BD = np.asarray(encode(obs))
  assert features_BD.shape == (BATCH, made.hidden_size) == (BATCH, 1024)
  np.testing.assert_allclose(np.linalg.norm(features_BD, axis=-1), 1.0, atol=1e-5)
  assert not features_BD[1, 512:].any() and features_BD[0, 512:].any()


def test_features_depend_on_picture_and_words_but_not_on_padding(encode, obs):
  before = np.asarray(encode(obs))
  padded = obs.tokenized_prompt.at[2, 3].add(1)
  np.testing.assert_array_equal(encode(obs.replace(tokenized_prompt=padded)), before)
  other = obs.tokenized_prompt.at[2, 0].set((obs.tokenized_prompt[2, 0] + 1) % 16)
  worded = np.asarray(encode(obs.replace(tokenized_prompt=other)))
  np.testing.assert_array_equal(worded[:2], before[:2])
  assert not np.allclose(worded[2], before[2])
  seen = np.asarray(encode(obs.replace(images=obs.images | {"front": -obs.images["front"]})))
  assert not np.allclose(seen, before)


def test_the_default_encoder_has_less_than_five_megabytes():
  made = base.backbone("light")
  shapes = jax.eval_shape(made.init, jax.random.key(0))
  assert sum(x.size * 4 for x in jax.tree.leaves(shapes)) < 5e6
  # torchvision's mobilenet_v3_small has so many parameters before its classifier.
  trunk = sum(x.size for x in jax.tree.leaves(shapes["params"]["trunk"]))
  assert trunk == 927_008
  assert mobilenet.squeezed_channels(16) == 8 and mobilenet.squeezed_channels(96) == 24


def test_the_parts(made, params):
  words = made.word_embedding(params, jnp.array([[1, 2, 3, 3]]))
  assert words.shape == (1, 4, 256)
  text = made.text_tower(params, words, jnp.array([[True, True, False, False]]))
  np.testing.assert_allclose(text, words[:, :2].mean(axis=1), atol=1e-6)
  with pytest.raises(Pi0RagError, match="vocab_size is 0 and the prompt is there"):
    base.backbone("light").word_embedding(params, jnp.array([[1]]))
  assert isinstance(made, light.LightBackbone)


@pytest.mark.parametrize("fields", [{"vocab_size": 4}, {"image_keys": ()}, {"pool": "max"}])
def test_impossible_sizes_are_refused(fields):
  with pytest.raises(Pi0RagError, match=r"either both of the prompt's sizes or none|unknown pool"):
    base.backbone("light", **fields)
