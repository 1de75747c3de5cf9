"""Features of PaliGemma from raw observations, and what a cache of them is known by."""

import dataclasses

import jax
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import embedding, registry
from pi0rag_jax.models.backbones import base
from pi0rag_jax.models.backbones.light import LightBackbone
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.policy import features
from pi0rag_jax.robots import normalize

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")
STATS = normalize.NormStats(np.zeros(10), np.ones(10))


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory, text_tokenizer):
  """A small pi0 as a backbone, from a checkpoint."""
  small = {"depth": 1, "num_heads": 2, "width": 16, "mlp_dim": 16}
  dummy = registry.model("dummy")
  gemma = dataclasses.replace(dummy.paligemma, **small)
  made = base.backbone("paligemma", config=dataclasses.replace(
    dummy, paligemma=gemma, expert=gemma, siglip=dataclasses.replace(dummy.siglip, depth=1), vocab_size=1024,
    image_keys=CAMERAS, max_token_len=96))
  template = jax.eval_shape(made.init, jax.random.key(0))
  rng = np.random.default_rng(0)
  directory = tmp_path_factory.mktemp("checkpoint")
  checkpoints.save_params(directory, jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(x.dtype), template))
  params = checkpoints.load_params(directory, template=template)
  return features.FeatureExtractor(made, params, STATS, tokenizer=text_tokenizer)


def model_input(extractor, observations):
  return Observation.from_dict(extractor.batch([extractor.model_input(o) for o in observations]))


def test_features_are_the_pooled_prefix_of_the_checkpoints_model(paligemma, observations):
  got = np.asarray(paligemma.encode(observations))
  obs = model_input(paligemma, observations)
  network = registry.network(paligemma.backbone.config)
  np.testing.assert_allclose(got, embedding.embed_observation(network, paligemma.params, obs).key_BE, atol=1e-5)
  assert got.shape == (2, 16) and not np.allclose(got[0], got[1])
  np.testing.assert_allclose(obs.images["base_0_rgb"][0], observations[0]["image"]["base_0_rgb"] / 127.5 - 1, atol=1e-6)


def test_the_preprocessing_is_part_of_the_cache_key(paligemma):
  key = paligemma.cache_key("data")
  assert (key.weights, key.dataset) == (paligemma.weights, "data")
  other = base.backbone("paligemma", config=paligemma.backbone.config, pool="camera")
  changed = features.FeatureExtractor(other, paligemma.params, STATS, tokenizer=paligemma._tokenizer)
  assert changed.weights == key.weights and changed.preprocessing != key.preprocessing
  prompted = features.FeatureExtractor(
    paligemma.backbone, paligemma.params, STATS, tokenizer=paligemma._tokenizer, state_in_prompt=True)
  assert prompted.preprocessing not in (key.preprocessing, changed.preprocessing)


def test_pictures_of_any_size_and_order_are_taken(paligemma, observations):
  raw = observations[0]
  wide = {name: np.zeros((3, 32, 48), np.float32) for name in raw["image"]}
  obs = model_input(paligemma, [raw | {"image": wide}])
  assert all(image.shape == (1, 64, 64, 3) for image in obs.images.values())


def test_the_state_may_stand_in_the_prompt(paligemma, observations):
  prompted = features.FeatureExtractor(
    paligemma.backbone, paligemma.params, STATS, tokenizer=paligemma._tokenizer, state_in_prompt=True)
  tokens = model_input(paligemma, observations[:1]).tokenized_prompt
  assert not np.array_equal(model_input(prompted, observations[:1]).tokenized_prompt, tokens)


@pytest.mark.parametrize(("change", "message"), [
  ({"state": np.zeros(3)}, "state: array has 3 dims, the norm stats have 10"),
  ({"state": np.full(10, np.nan)}, "state has NaN"),
  ({"image": {"wrist": np.zeros((4, 4, 3), np.uint8)}}, "no picture of base_0_rgb, left_wrist_0_rgb, there are wrist"),
])
def test_observations_are_checked(paligemma, observations, change, message):
  with pytest.raises(Pi0RagError, match=message):
    paligemma.encode([observations[0] | change])


def test_a_missing_prompt_or_tokenizer_is_told(paligemma, observations):
  silent = {key: value for key, value in observations[0].items() if key != "prompt"}
  with pytest.raises(Pi0RagError, match="the observation has no 'prompt'"):
    paligemma.encode([silent])
  with pytest.raises(Pi0RagError, match="it takes a tokenizer"):
    features.FeatureExtractor(paligemma.backbone, {}, STATS)
  with pytest.raises(Pi0RagError, match="needs a backbone that reads a prompt"):
    features.FeatureExtractor(LightBackbone(), {}, STATS, state_in_prompt=True)
