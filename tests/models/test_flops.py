"""FLOPs against counts by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from flax import errors

from pi0rag_jax.models import flops, registry


def test_products_and_convolutions_by_hand():
  batched = jax.make_jaxpr(lambda a, b: jnp.einsum("nij,njk->nik", a, b))(jnp.ones((2, 3, 4)), jnp.ones((2, 4, 5)))
  assert flops.count_flops(batched.jaxpr) == 2 * 2 * 3 * 4 * 5
  picture, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((2, 2, 3, 16))
  convolution = jax.make_jaxpr(lambda x, k: jax.lax.conv_general_dilated(
    x, k, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")))(picture, kernel)
  assert flops.count_flops(convolution.jaxpr) == 2 * (4 * 4 * 16) * (2 * 2 * 3)


def scanned(name):
  return dataclasses.replace(registry.model(name), unroll=False)


@functools.cache
def shapes(sizes):
  return jax.eval_shape(functools.partial(registry.init, sizes), jax.random.key(0))


def vision(sizes):
  s, tokens = sizes.siglip, sizes.image_tokens
  layer = 8 * tokens * s.width**2 + 4 * tokens**2 * s.width + 4 * tokens * s.width * s.mlp_dim
  patches = 2 * tokens * 3 * s.patch_size**2 * s.width
  return len(sizes.image_keys) * (patches + s.depth * layer + 2 * tokens * s.width * sizes.paligemma.width)


def language(gemma, tokens, seen):
  """Of some tokens that attend to all that are seen."""
  heads = gemma.num_heads * gemma.head_dim
  projections = 4 * tokens * gemma.width * heads + 4 * tokens * gemma.width * gemma.num_kv_heads * gemma.head_dim
  return gemma.depth * (projections + 4 * tokens * seen * heads + 6 * tokens * gemma.width * gemma.mlp_dim)


def test_a_flow_by_hand():
  sizes, steps = scanned("dummy"), 3
  found = flops.by_stage(sizes, shapes(sizes), steps=steps)
  prefix, actions, width = sizes.prefix_tokens, sizes.action_horizon, sizes.expert.width
  assert found["vision"] == vision(sizes)
  assert found["encode"] == vision(sizes) + language(sizes.paligemma, prefix, prefix)
  step = (language(sizes.expert, actions, prefix + 1 + actions)
          + 2 * actions * width * (2 * sizes.action_dim + 2 * width))
  # The state's token and what the times add are computed once.
  state = 2 * sizes.state_size * width + language(sizes.expert, 1, prefix + 1)
  assert found["decode"] == steps * step + state + 2 * steps * width**2


def test_a_token_does_not_depend_on_how_many_may_be_written():
  sizes = scanned("dummy_fast")
  found = flops.by_stage(sizes, shapes(sizes), steps=8)
  assert found["vision"] == vision(sizes) < found["encode"]
  head = 2 * sizes.paligemma.width * sizes.vocab_size
  seen = sizes.prefix_tokens + 8
  assert found["token"] == pytest.approx(language(sizes.paligemma, 1, seen) + head, rel=0.02)


def test_shapes_of_another_model_are_refused():
  with pytest.raises(errors.FlaxError):
    flops.by_stage(scanned("dummy"), shapes(scanned("dummy_fast")), steps=2)
