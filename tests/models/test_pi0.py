import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import pi0
from pi0rag_jax.models.observation import Observation

LOSS = jax.jit(pi0.loss, static_argnums=0)
DRAWS = jax.jit(pi0.loss_draws, static_argnums=0)
PREFIX = jax.jit(pi0.encode_prefix, static_argnums=0)
DENOISE = jax.jit(pi0.denoise, static_argnums=0, static_argnames="num_steps")
SAMPLE = jax.jit(pi0.sample_actions, static_argnums=0, static_argnames="num_steps")


@pytest.fixture
def draws(actions_BTA):
  """Two draws of (noise_DBTA, time_DB)."""
  rng = np.random.default_rng(4)
  noise_DBTA = jnp.asarray(rng.normal(size=(2, *actions_BTA.shape)), jnp.float32)
  return noise_DBTA, jnp.asarray(rng.uniform(0.1, 1.0, (2, actions_BTA.shape[0])), jnp.float32)


def test_draws_over_one_prefix_are_the_loss_of_each_draw(model, params, obs, actions_BTA, draws):
  losses_DBT, prefix = DRAWS(model, params, obs, actions_BTA, *draws)
  each = [LOSS(model, params, obs, actions_BTA, noise, time) for noise, time in zip(*draws)]
  np.testing.assert_allclose(losses_DBT, jnp.stack(each), rtol=1e-4, atol=1e-5)
  assert prefix.hidden_BSD.shape == (3, 18, 24)


def test_draws_over_one_prefix_have_the_gradient_of_each_draw(model, params, obs, actions_BTA, draws):
  of_draws = jax.jit(jax.grad(lambda p: pi0.loss_draws(model, p, obs, actions_BTA, *draws)[0].mean()))(params)
  one = jax.jit(jax.grad(lambda p, n, t: pi0.loss(model, p, obs, actions_BTA, n, t).mean()))
  of_draws, of_each = jax.device_get((of_draws, [one(params, noise, time) for noise, time in zip(*draws)]))
  of_each = jax.tree.map(lambda a, b: (a + b) / 2, *of_each)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), of_draws, of_each)
  unused = [path for path, g in jax.tree_util.tree_leaves_with_path(of_draws) if not g.any()]
  # The last layer's prefix output feeds nothing but an auxiliary head; its norm is the one array without gradient.
  assert [jax.tree_util.keystr(path, simple=True, separator="/") for path in unused] == [
    "PaliGemma/llm/final_norm/scale"]


@pytest.mark.parametrize("pi05", [False, True])
def test_the_cached_prefix_gives_the_joint_velocity(config, random_params, obs, noise_BTA, pi05):
  config = dataclasses.replace(config, pi05=pi05)
  model, time_B = pi0.Pi0(config), jnp.array([0.2, 0.5, 1.0])
  params = random_params(functools.partial(pi0.init, config))

  @jax.jit
  def both(params):
    joint = model.apply({"params": params}, obs, noise_BTA, time_B, method="joint")
    prefix = pi0.encode_prefix(model, params, obs)
    bound = model.bind({"params": params})
    context = bound.context(prefix, obs.state)
    return joint, prefix, bound.velocity(context, noise_BTA, bound.embed_time(time_B))

  (prefix_BSD, _, joint_BTA), prefix, cached_BTA = both(params)
  np.testing.assert_allclose(cached_BTA, joint_BTA, atol=1e-5)
  np.testing.assert_allclose(prefix.hidden_BSD[prefix.mask_BS], prefix_BSD[prefix.mask_BS], atol=1e-5)


def test_unrolled_layers_are_the_same_function(config, model, params, obs, noise_BTA):
  unrolled = pi0.Pi0(dataclasses.replace(config, unroll=True))
  np.testing.assert_allclose(
    SAMPLE(unrolled, params, obs, noise_BTA, num_steps=3),
    SAMPLE(model, params, obs, noise_BTA, num_steps=3), atol=1e-5)


def test_masked_cameras_and_padding_do_not_matter(model, params, obs, noise_BTA):
  chunk_BTA = SAMPLE(model, params, obs, noise_BTA, num_steps=3)
  mask_BL = obs.tokenized_prompt_mask
  other = obs.replace(
    images={**obs.images, "wrist": obs.images["wrist"].at[1].set(0.5)},
    tokenized_prompt=jnp.where(mask_BL, obs.tokenized_prompt, 31))
  np.testing.assert_allclose(SAMPLE(model, params, other, noise_BTA, num_steps=3), chunk_BTA, atol=1e-6)
  seen = obs.replace(images={**obs.images, "wrist": obs.images["wrist"].at[0].set(0.5)})
  assert np.abs(SAMPLE(model, params, seen, noise_BTA, num_steps=3) - chunk_BTA)[0].max() > 1e-4


def test_prefix_and_denoising_apart_are_sampling(model, params, obs, noise_BTA):
  prefix = PREFIX(model, params, obs)
  chunk_BTA = DENOISE(model, params, prefix, obs.state, noise_BTA, num_steps=3)
  np.testing.assert_allclose(chunk_BTA, SAMPLE(model, params, obs, noise_BTA, num_steps=3), atol=1e-6)


def test_one_step_is_noise_minus_velocity(model, params, obs, noise_BTA):
  prefix = PREFIX(model, params, obs)
  joint = jax.jit(lambda p: model.apply({"params": p}, obs, noise_BTA, jnp.ones(3), method="joint"))
  _, _, velocity_BTA = joint(params)
  chunk_BTA = DENOISE(model, params, prefix, obs.state, noise_BTA, num_steps=1)
  np.testing.assert_allclose(chunk_BTA, noise_BTA - velocity_BTA, atol=1e-5)


def test_a_prompt_may_be_absent(model, params, obs):
  silent = Observation(images=obs.images, image_masks=obs.image_masks, state=obs.state)
  assert jax.eval_shape(functools.partial(pi0.encode_prefix, model), params, silent).hidden_BSD.shape == (3, 12, 24)


def test_bfloat16_computes_in_bfloat16_and_integrates_in_float32(config, params, obs, noise_BTA):
  model = pi0.Pi0(dataclasses.replace(config, dtype="bfloat16"))
  sample = functools.partial(pi0.sample_actions, model, num_steps=2)
  assert jax.eval_shape(sample, params, obs, noise_BTA).dtype == jnp.float32
  assert jax.eval_shape(functools.partial(pi0.encode_prefix, model), params, obs).hidden_BSD.dtype == jnp.bfloat16


def test_missing_cameras_and_wrong_sizes_are_named(model, params, obs):
  with pytest.raises(Pi0RagError, match=r"lacks camera\(s\) wrist; it has front"):
    pi0.encode_prefix(model, params, obs.replace(images={"front": obs.images["front"]}))
  with pytest.raises(Pi0RagError, match=r"camera front gives \(8, 24\) pixels, the model takes \(16, 24\)"):
    pi0.encode_prefix(model, params, obs.replace(images={**obs.images, "front": jnp.zeros((3, 8, 24, 3))}))
