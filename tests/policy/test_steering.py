"""Steering: weights by distance, nothing in range, presets."""

import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy import steering
from pi0rag_jax.policy.spec import PANDA_ACTIONS as LAYOUT

BASE = np.random.default_rng(0).uniform(LAYOUT.low, LAYOUT.high, (2, 16, 5)).astype(np.float32)


def neighbours(distance_BK, residual=0.0, mask=True):
  """Returns neighbours whose residual is `residual` metres along y."""
  distance_BK = np.asarray(distance_BK, np.float32)
  residual_BKTA = np.zeros((*distance_BK.shape, 16, 5), np.float32)
  residual_BKTA[..., 1] = residual
  return {"distance_BK": distance_BK, "mask_BK": np.full(distance_BK.shape, mask),
          "is_correction_BK": np.ones(distance_BK.shape, bool),
          "residual_BKTA": residual_BKTA, "corrected_BKTA": np.zeros_like(residual_BKTA)}


@pytest.mark.parametrize("preset", steering.PRESETS)
@pytest.mark.parametrize("far", [neighbours([[3.1, 9.0]] * 2, 0.02), neighbours([[0.0, 0.0]] * 2, 0.02, mask=False)])
def test_nothing_in_range_is_the_base_bit_for_bit(preset, far):
  actions, used = steering.steer(jnp.asarray(BASE), far, steering.preset(preset), LAYOUT)
  np.testing.assert_array_equal(actions, BASE)
  np.testing.assert_array_equal(used, 0)


def test_the_residual_is_the_kernel_weighted_mean():
  config = steering.preset("residual", regularization=0.5)
  still = np.zeros((1, 16, 5), np.float32)
  near = neighbours([[0.0, config.tau]])
  near["residual_BKTA"][0, 0, :, 1] = 0.012
  near["residual_BKTA"][0, 1, :, 1] = -0.004
  actions, used = steering.steer(jnp.asarray(still), near, config, LAYOUT)
  weight = np.exp(-0.5)
  expected = (0.012 - 0.004 * weight) / (1 + weight + 0.5)
  np.testing.assert_allclose(np.asarray(actions)[0, :, 1].sum(), expected, rtol=1e-5)
  assert used[0] == 2


def test_an_anchor_without_residual_holds_a_correction_back():
  still = jnp.zeros((1, 16, 5))
  alone, _ = steering.steer(still, neighbours([[0.5]], 0.01), steering.preset("residual"), LAYOUT)
  both = neighbours([[0.5, 0.5]], 0.01)
  both["residual_BKTA"][0, 1] = 0
  both["is_correction_BK"][0, 1] = False
  config = steering.preset("residual", regularization=0.0)
  held, _ = steering.steer(still, both, config, LAYOUT)
  np.testing.assert_allclose(np.asarray(held)[0, :, 1].sum(), 0.01 / (1 + config.anchor_weight), rtol=1e-5)
  assert np.asarray(held)[0, :, 1].sum() < np.asarray(alone)[0, :, 1].sum()


def test_the_displacement_is_bounded():
  actions, _ = steering.steer(jnp.zeros((1, 16, 5)), neighbours([[0.0]], 0.5),
                              steering.preset("residual", clip_m=0.03, regularization=0.0), LAYOUT)
  np.testing.assert_allclose(np.asarray(actions)[0, :, 1].sum(), 0.03, atol=1e-6)


def test_the_textbook_blend_moves_a_part_of_the_way():
  near = neighbours([[0.1, 0.2, 0.3]])
  near["corrected_BKTA"][...] = 0.01
  actions, _ = steering.steer(jnp.zeros((1, 16, 5)), near, steering.preset("textbook"), LAYOUT)
  np.testing.assert_allclose(actions, 0.003, atol=1e-7)


def test_wrong_names_list_the_valid_ones():
  with pytest.raises(Pi0RagError, match="residual, textbook"):
    steering.preset("resdual")
  with pytest.raises(Pi0RagError, match="alpha"):
    steering.preset("residual", alfa=1)
  with pytest.raises(Pi0RagError, match="blend, residual"):
    steering.preset("residual", method="sum")
