"""Chunks as paths, and the residual between two of them."""

import numpy as np
import pytest

from pi0rag_jax.robots.panda import ACTIONS
from pi0rag_jax.steering import paths


def chunk(*steps):
  """Returns [1, T, 5] from (dx, gripper) pairs."""
  out = np.zeros((1, len(steps), 5), np.float32)
  out[0, :, 0] = [s[0] for s in steps]
  out[0, :, 4] = [s[1] for s in steps]
  return out


def test_path_sums_deltas_and_keeps_the_gripper():
  path = paths.to_path(chunk((0.01, 1), (0.01, 1), (0.005, 0)), ACTIONS)
  np.testing.assert_allclose(path[0, :, 0], [0.01, 0.02, 0.025], atol=1e-7)
  np.testing.assert_array_equal(path[0, :, 4], [1, 1, 0])


def test_from_path_inverts_to_path_within_the_limits():
  rng = np.random.default_rng(0)
  actions = rng.uniform(ACTIONS.low, ACTIONS.high, (3, 16, 5)).astype(np.float32)
  np.testing.assert_allclose(paths.from_path(paths.to_path(actions, ACTIONS), ACTIONS), actions, atol=1e-6)


def test_from_path_carries_what_a_limit_cuts_off():
  path = np.zeros((1, 4, 5), np.float32)
  path[0, :, 0] = 0.04  # a jump of 40 mm, 15 mm a tick allowed
  np.testing.assert_allclose(paths.from_path(path, ACTIONS)[0, :, 0], [0.015, 0.015, 0.01, 0.0], atol=1e-6)


def test_equal_chunks_have_no_residual():
  actions = np.random.default_rng(1).uniform(ACTIONS.low, ACTIONS.high, (5, 16, 5)).astype(np.float32)
  np.testing.assert_array_equal(paths.aligned_residual(actions, actions, ACTIONS, band=6), 0)


def test_a_path_that_is_only_later_in_time_has_no_residual_within_the_band():
  early = chunk(*[(0.01, 1)] * 6, *[(0.0, 0)] * 4)
  late = chunk(*[(0.0, 1)] * 2, *[(0.01, 1)] * 6, *[(0.0, 0)] * 2)
  aligned = paths.aligned_residual(early, late, ACTIONS, band=4)
  assert np.abs(aligned).max() < 0.0101  # the starts differ by one tick at most
  by_tick = paths.aligned_residual(early, late, ACTIONS, band=0)
  assert np.abs(by_tick[..., 0]).max() > 0.019


def test_a_displaced_path_has_its_displacement_as_residual():
  straight, bent = chunk(*[(0.01, 1)] * 8), chunk(*[(0.01, 1)] * 8)
  bent[0, :4, 1] = 0.005  # 20 mm to the side
  residual = paths.aligned_residual(straight, bent, ACTIONS, band=3)
  np.testing.assert_allclose(residual[0, -1], [0, 0.02, 0, 0, 0], atol=1e-6)


def test_disagreement_is_about_centimetres():
  residual = np.zeros((1, 8, 5), np.float32)
  residual[..., 1] = 0.02
  assert paths.disagreement(residual, ACTIONS)[0] == pytest.approx(2.0)
