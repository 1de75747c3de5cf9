"""A model small enough to compile in a second, and inputs for it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.models import pi0
from pi0rag_jax.models.gemma import GemmaConfig
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.siglip import SiglipConfig

BATCH = 3


@pytest.fixture(scope="session")
def config():
  return pi0.Pi0Config(
    paligemma=GemmaConfig(width=24, depth=2, mlp_dim=32, num_heads=2, num_kv_heads=1, head_dim=8),
    expert=GemmaConfig(width=16, depth=2, mlp_dim=24, num_heads=2, num_kv_heads=1, head_dim=8),
    siglip=SiglipConfig(width=16, depth=2, mlp_dim=24, num_heads=2, patch_size=8, zero_head=False),
    action_dim=3, state_dim=4, action_horizon=5, max_token_len=6, vocab_size=32, image_size=(16, 24),
    image_keys=("front", "wrist"), dtype="float32")


@pytest.fixture(scope="session")
def model(config):
  return pi0.Pi0(config)


@pytest.fixture(scope="session")
def random_params():
  """Returns a function from a module's initializer and its arguments to random parameters.

  Numpy draws them: nothing stays at its initial zero, and the initializers, slow to compile, are only traced.
  """

  def draw(init, *args):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0), *args)
    return jax.tree.map(lambda x: rng.normal(scale=0.2, size=x.shape).astype(x.dtype), shapes)

  return draw


@pytest.fixture(scope="session")
def params(config, random_params):
  return random_params(functools.partial(pi0.init, config))


@pytest.fixture
def obs(config):
  rng = np.random.default_rng(1)
  prompt_mask_BL = np.arange(config.max_token_len) < np.array([[6], [3], [1]])
  return Observation(
    images={key: jnp.asarray(rng.uniform(-1, 1, (BATCH, 16, 24, 3)), jnp.float32) for key in config.image_keys},
    image_masks={"front": jnp.ones(BATCH, bool), "wrist": jnp.array([True, False, True])},
    state=jnp.asarray(rng.normal(size=(BATCH, 4)), jnp.float32),
    tokenized_prompt=jnp.asarray(rng.integers(0, 32, (BATCH, config.max_token_len)), jnp.int32),
    tokenized_prompt_mask=jnp.asarray(prompt_mask_BL))


@pytest.fixture
def actions_BTA(config):
  shape = (BATCH, config.action_horizon, config.action_dim)
  return jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32)


@pytest.fixture
def noise_BTA(actions_BTA):
  return jnp.asarray(np.random.default_rng(3).normal(size=actions_BTA.shape), jnp.float32)
