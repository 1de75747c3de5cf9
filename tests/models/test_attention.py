import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.models import attention


def test_mask_blocks_by_hand():
  # Two prefix tokens, then the state's block, then a block of two actions; the second prefix token is padding.
  mask = attention.attention_mask(jnp.array([[True, False, True, True, True]]), jnp.array([0, 0, 1, 1, 0]))
  wanted = [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 1, 1, 1], [1, 0, 1, 1, 1]]
  np.testing.assert_array_equal(mask[0], np.array(wanted, bool))


def test_positions_do_not_advance_at_padding():
  positions = attention.token_positions(jnp.array([[False, True, False, True]]))
  np.testing.assert_array_equal(positions, [[-1, 0, 0, 1]])


def test_rotation_by_hand():
  # Head dim 4: angle 2 for the first pair (dims 0 and 2), 2 / 100 for the second (dims 1 and 3).
  x_BTNH = jnp.array([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
  rotated = attention.rotate(x_BTNH, attention.rotary_angles(jnp.array([[2]]), 4))
  wanted = [np.cos(2), np.cos(0.02), np.sin(2), np.sin(0.02)]
  np.testing.assert_allclose(rotated.reshape(4), wanted, rtol=1e-6)


def test_rotated_products_depend_on_the_distance_only():
  q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

  @jax.jit
  def product(i, j):
    at = lambda p: attention.rotary_angles(jnp.array([[p]]), 8)  # noqa: E731
    return jnp.sum(attention.rotate(q, at(i)) * attention.rotate(k, at(j)))

  np.testing.assert_allclose(product(7, 3), product(104, 100), rtol=1e-4)


def test_rotation_keeps_shape_and_dtype():
  x_BTNH = jnp.ones((2, 3, 4, 8), jnp.bfloat16)
  rotated = attention.rotate(x_BTNH, attention.rotary_angles(jnp.zeros((2, 3), jnp.int32), 8))
  assert rotated.shape == x_BTNH.shape and rotated.dtype == jnp.bfloat16
  np.testing.assert_array_equal(rotated, x_BTNH)


def test_segments_are_as_good_as_their_concatenation():
  rng = np.random.default_rng(0)
  q_BTNH = rng.normal(size=(2, 3, 4, 8)).astype(np.float32)
  k_BSKH, v_BSKH = rng.normal(size=(2, 2, 7, 2, 8)).astype(np.float32)
  mask_BTS = rng.random((2, 3, 7)) < 0.7
  split = [(k_BSKH[:, :5], v_BSKH[:, :5]), (k_BSKH[:, 5:], v_BSKH[:, 5:])]
  attend = jax.jit(attention.attend)
  np.testing.assert_allclose(
    attend(q_BTNH, split, mask_BTS), attend(q_BTNH, [(k_BSKH, v_BSKH)], mask_BTS), atol=1e-6)


def test_query_heads_share_keys_in_order():
  # Four query heads over two key heads: heads 0 and 1 read key head 0, heads 2 and 3 key head 1.
  v_BSKH = jnp.stack([jnp.full((1, 5, 8), 1.0), jnp.full((1, 5, 8), 2.0)], axis=2)
  out_BTNH = attention.attend(
    jnp.ones((1, 1, 4, 8)), [(jnp.ones((1, 5, 2, 8)), v_BSKH)], jnp.ones((1, 1, 5), bool))
  np.testing.assert_allclose(out_BTNH[0, 0, :, 0], [1, 1, 2, 2])


def test_heads_as_rows_are_as_good_as_heads_apart():
  rng = np.random.default_rng(0)
  q_BTNH = rng.normal(size=(2, 3, 4, 8)).astype(np.float32)
  k_BSKH, v_BSKH = rng.normal(size=(2, 2, 7, 2, 8)).astype(np.float32)
  mask_BTS = rng.random((2, 3, 7)) < 0.7
  segments = [(k_BSKH[:, :5], v_BSKH[:, :5]), (k_BSKH[:, 5:], v_BSKH[:, 5:])]
  joined_BTNH = attention.Kernel(joined=True).over_segments(q_BTNH, segments, mask_BTS)
  np.testing.assert_allclose(joined_BTNH, attention.attend(q_BTNH, segments, mask_BTS), atol=1e-6)


def test_a_row_without_keys_stays_finite():
  kv = (jnp.ones((1, 3, 1, 4)), jnp.ones((1, 3, 1, 4)))
  assert bool(jnp.isfinite(attention.attend(jnp.ones((1, 2, 1, 4)), [kv], jnp.zeros((1, 2, 3), bool))).all())
