import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import embedding, pi0, pi0_fast
from pi0rag_jax.models.observation import Observation

SPANS = {"front": slice(0, 6), "wrist": slice(6, 12), "language": slice(12, 18)}


@pytest.fixture(scope="module", params=["pi0", "pi05", "pi0_fast"])
def family(request, config, random_params):
  """A network of each family and its parameters."""
  if request.param == "pi0_fast":
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(pi0_fast.Pi0FastConfig)}
    config = pi0_fast.Pi0FastConfig(**shared)
    return pi0_fast.Pi0Fast(config), random_params(functools.partial(pi0_fast.init, config))
  config = dataclasses.replace(config, pi05=request.param == "pi05")
  return pi0.Pi0(config), random_params(functools.partial(pi0.init, config))


def mean_of_valid(values_BSD, mask_BS, span=slice(None)):
  rows = [values[span][mask[span]] for values, mask in zip(np.asarray(values_BSD), np.asarray(mask_BS))]
  return np.stack([row.mean(axis=0) if len(row) else np.zeros(24) for row in rows])


@pytest.mark.parametrize("layer", embedding.LAYERS)
def test_keys_of_cameras_are_means_over_their_valid_tokens(family, obs, layer):
  model, params = family
  found = embedding.embed_observation(model, params, obs, layer=layer, pool="camera")
  assert found.tokens_BSD.shape == (3, 18, 24) and found.mask_BS.shape == (3, 18)
  of = functools.partial(mean_of_valid, found.tokens_BSD, found.mask_BS)
  assert found.key_BE.shape == (3, 48) and found.key_BE.dtype == jnp.float32
  np.testing.assert_allclose(found.key_BE, np.concatenate([of(SPANS["front"]), of(SPANS["wrist"])], axis=1), atol=1e-5)
  # The wrist camera of the second observation is masked.
  assert not found.key_BE[1, 24:].any() and found.key_BE[1, :24].any()


@pytest.mark.parametrize(("pool", "span"), [("mean", slice(None)), ("language", SPANS["language"])])
def test_other_keys_are_means_over_valid_tokens(model, params, obs, pool, span):
  found = embedding.embed_observation(model, params, obs, layer="input", pool=pool)
  np.testing.assert_allclose(found.key_BE, mean_of_valid(found.tokens_BSD, found.mask_BS, span), atol=1e-5)


def test_the_layers_are_the_first_input_and_the_last_output(model, params, obs):
  prefix = jax.jit(pi0.encode_prefix, static_argnums=0)(model, params, obs)
  inputs = embedding.embed_observation(model, params, obs, layer="input")
  hidden = embedding.embed_observation(model, params, obs)
  np.testing.assert_allclose(inputs.tokens_BSD, prefix.tokens_BSD, atol=1e-5)
  valid_BS = np.asarray(prefix.mask_BS)
  np.testing.assert_allclose(hidden.tokens_BSD[valid_BS], prefix.hidden_BSD[valid_BS], atol=1e-5)


def test_without_a_prompt_the_cameras_are_embedded(model, params, obs):
  silent = Observation(images=obs.images, image_masks=obs.image_masks, state=obs.state)
  assert embedding.embed_observation(model, params, silent, layer="input").tokens_BSD.shape == (3, 12, 24)
  with pytest.raises(Pi0RagError, match="pool 'language' needs a tokenized prompt"):
    embedding.embed_observation(model, params, silent, pool="language")


def test_unknown_layers_and_pools_are_named(model, params, obs):
  with pytest.raises(Pi0RagError, match=r"unknown layer 'inputs'. Did you mean 'input'\? Valid names: hidden, input"):
    embedding.embed_observation(model, params, obs, layer="inputs")
  with pytest.raises(Pi0RagError, match=r"unknown pool 'max'. .*camera, language, mean, tokens"):
    embedding.embed_observation(model, params, obs, pool="max")


def test_only_valid_tokens_are_pooled_even_beside_garbage():
  values = jnp.array([[[1.0, 2.0], [3.0, 4.0], [jnp.nan, 9.0]], [[5.0, 5.0]] * 3])
  mask = jnp.array([[True, True, False], [False, False, False]])
  np.testing.assert_allclose(embedding.pool_prefix(values, mask), [[2, 3], [0, 0]])


def test_a_span_pools_one_camera():
  values = jnp.arange(4.0).reshape(1, 4, 1)
  mask = jnp.ones((1, 4), bool)
  np.testing.assert_allclose(embedding.pool_prefix(values, mask, span=slice(2, 4)), [[2.5]])


def test_spans_cover_the_prefix_in_order(config, model, params, obs):
  spans = embedding.prefix_spans(config)
  # 16 x 24 pixels in patches of 8 are 6 tokens a camera; the prompt has 6.
  assert spans == SPANS
  embed = jax.jit(lambda p, o: model.apply({"params": p}, o, method="embed_prefix"))
  tokens_BSD, mask_BS, _ = embed(params, obs)
  assert tokens_BSD.shape == (3, config.prefix_tokens, 24)
  assert not mask_BS[1, spans["wrist"]].any() and mask_BS[1, spans["front"]].all()
