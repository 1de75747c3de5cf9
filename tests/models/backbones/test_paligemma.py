import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import embedding, pi0
from pi0rag_jax.models.backbones import base, paligemma


@pytest.fixture(scope="module")
def made(config):
  return base.backbone("paligemma", config=config)


def test_features_are_the_pooled_prefix_and_the_parts_compose(made, config, model, params, obs):
  features_BD = made.encode(params, obs)
  assert features_BD.shape == (3, made.hidden_size)
  np.testing.assert_array_equal(features_BD, embedding.embed_observation(model, params, obs).key_BE)

  @jax.jit
  def by_parts(params):
    cameras = made.encode_images(params, obs.images)
    words_BLD = made.word_embedding(params, obs.tokenized_prompt)
    tokens_BSD = jnp.concatenate([*cameras.values(), words_BLD], axis=1)
    masks = [jnp.repeat(obs.image_masks[name][:, None], config.image_tokens, axis=1) for name in config.image_keys]
    mask_BS = jnp.concatenate([*masks, obs.tokenized_prompt_mask], axis=1)
    return embedding.pool_prefix(made.text_tower(params, tokens_BSD, mask_BS), mask_BS)

  np.testing.assert_allclose(by_parts(params), features_BD, atol=1e-5)


def test_sizes_follow_the_model(made, config):
  assert (made.hidden_size, made.image_size, made.max_token_len) == (24, (16, 24), 6)
  assert base.backbone("paligemma", config=config, pool="camera").hidden_size == 48
  described = made.describe()
  assert described["backbone"] == "paligemma" and described["family"] == "Pi0Config"
  assert described["config"]["paligemma"]["width"] == 24
  shapes = jax.eval_shape(functools.partial(pi0.init, config), jax.random.key(0))
  assert jax.tree.structure(jax.eval_shape(made.init, jax.random.key(0))) == jax.tree.structure(shapes)


def test_fields_are_checked(config):
  with pytest.raises(Pi0RagError, match=r"missing field\(s\) config"):
    base.backbone("paligemma")
  with pytest.raises(Pi0RagError, match="takes a model's configuration, got 'pi0'"):
    base.backbone("paligemma", config="pi0")
  with pytest.raises(Pi0RagError, match=r"unknown pool 'max'"):
    paligemma.PaliGemmaBackbone(config, pool="max")
