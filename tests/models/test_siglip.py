import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.siglip import PatchEmbedding, Siglip, SiglipConfig

CONFIG = SiglipConfig(width=8, depth=2, mlp_dim=12, num_heads=2, patch_size=4)


def test_patch_embedding_is_the_convolution_that_openpi_stores(random_params):
  image = np.random.default_rng(0).normal(size=(2, 9, 14, 3)).astype(np.float32)  # rest pixels on both sides
  embedding = PatchEmbedding(8, 4)
  params = random_params(embedding.init, image)
  convolved = nn.Conv(8, (4, 4), strides=(4, 4), padding="VALID").apply(params, image)
  assert convolved.shape == (2, 2, 3, 8)
  np.testing.assert_allclose(embedding.apply(params, image), convolved.reshape(2, 6, 8), atol=1e-5)


@pytest.mark.parametrize("zero_head", [True, False])
def test_tokens_and_fresh_head(zero_head):
  config = SiglipConfig(width=8, depth=2, mlp_dim=12, num_heads=2, patch_size=4, zero_head=zero_head)
  tower = Siglip(config, out_dim=6)
  image = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
  # This generator compiles several times faster than the default one.
  params = jax.jit(tower.init)(jax.random.key(1, impl="unsafe_rbg"), image)
  tokens = jax.jit(tower.apply)(params, image)
  assert tokens.shape == (2, config.num_tokens((8, 12)), 6)
  assert bool((tokens == 0).all()) == zero_head


def test_unrolled_layers_are_the_same_function(random_params):
  image = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
  params = random_params(Siglip(CONFIG, 6).init, image)
  looped, unrolled = (jax.jit(Siglip(CONFIG, 6, unroll=unroll).apply)(params, image) for unroll in (False, True))
  np.testing.assert_allclose(looped, unrolled, atol=1e-5)


def test_compute_dtype():
  image = jnp.zeros((1, 8, 8, 3))
  tower = Siglip(CONFIG, 6, dtype=jnp.bfloat16)
  tokens = jax.eval_shape(lambda: tower.init_with_output(jax.random.key(1), image)[0])
  assert tokens.dtype == jnp.bfloat16


def test_too_small_an_image_is_named():
  with pytest.raises(Pi0RagError, match="3x8 is below one 4-pixel patch"):
    CONFIG.num_tokens((3, 8))
