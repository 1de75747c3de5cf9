import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.models import embedding


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
  assert spans == {"front": slice(0, 6), "wrist": slice(6, 12), "language": slice(12, 18)}
  embed = jax.jit(lambda p, o: model.apply({"params": p}, o, method="embed_prefix"))
  tokens_BSD, mask_BS, _ = embed(params, obs)
  assert tokens_BSD.shape == (3, config.prefix_tokens, 24)
  assert not mask_BS[1, spans["wrist"]].any() and mask_BS[1, spans["front"]].all()
