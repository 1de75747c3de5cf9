"""The plane: fields in closed form, samplers, distances, and what a network learns of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.models import flow
from pi0rag_jax.study import learning, plane
from pi0rag_jax.study.plane import COSINE, LINEAR, Mixture

MODES = Mixture((0.7, 0.3), ((-1.0, 0.5), (1.0, -0.3)), 0.2)
SOME = jnp.asarray([[[0.3, -0.2]], [[-1.1, 0.6]], [[1.5, 1.0]]])


@pytest.mark.parametrize(("signal", "spread"), [(0.1, 0.9), (0.8, 0.6)])
def test_the_expected_noise_is_the_score(signal, spread):
  """E[noise | x] = -spread * the gradient of the log density of noisy actions (Tweedie)."""
  variance = signal**2 * MODES.std**2 + spread**2

  def log_density(x_A):
    squared_C = jnp.square(x_A - signal * jnp.asarray(MODES.mean_CA)).sum(axis=-1)
    return jax.nn.logsumexp(jnp.log(jnp.asarray(MODES.weight_C)) - squared_C / (2 * variance))

  action_BTA, noise_BTA = MODES.expected(SOME, signal, spread)
  np.testing.assert_allclose(noise_BTA[:, 0], -spread * jax.vmap(jax.grad(log_density))(SOME[:, 0]), rtol=2e-4,
                             atol=1e-5)
  np.testing.assert_allclose(signal * action_BTA + spread * noise_BTA, SOME, atol=1e-5)  # x is what it is made of


def test_a_single_step_ends_at_the_mean_wherever_it_starts():
  ends_BTA = plane.flow_path(plane.exact_velocity(MODES), SOME, 1)[-1]
  np.testing.assert_allclose(ends_BTA, np.broadcast_to([-0.4, 0.26], (3, 1, 2)), atol=1e-6)
  np.testing.assert_allclose(MODES.mean_A, [-0.4, 0.26])


def test_z_0_stays_between_equals_and_goes_to_the_heavier_one():
  equals = Mixture((0.5, 0.5), ((-1.0, 0.0), (1.0, 0.0)), 0.2)
  heavier = Mixture((0.4, 0.6), ((-1.0, 0.0), (1.0, 0.0)), 0.2)
  end = lambda mixture: plane.flow_path(plane.exact_velocity(mixture), jnp.zeros((1, 1, 2)), 50)[-1, 0, 0]  # noqa: E731
  np.testing.assert_allclose(end(equals), [0, 0], atol=1e-6)
  assert 0.7 < end(heavier)[0] < 1.0


def test_more_steps_err_less_and_both_odes_end_at_the_actions():
  wanted_BTA, start_BTA = MODES.even(250, seed=0), plane.even_noise(250, seed=5)
  errors = {count: plane.wasserstein(plane.flow_path(plane.exact_velocity(MODES), start_BTA, count)[-1], wanted_BTA)
            for count in (1, 5, 50)}
  assert errors[1] > 3 * errors[5] and errors[5] > 1.3 * errors[50] and errors[50] < 0.14
  for schedule, rng in ((LINEAR, None), (COSINE, None), (LINEAR, jax.random.key(0))):
    path_NBTA = plane.diffusion_path(plane.exact_noise(MODES, schedule), start_BTA, 50, schedule=schedule, rng=rng)
    assert path_NBTA.shape == (51, 250, 1, 2) and plane.wasserstein(path_NBTA[-1], wanted_BTA) < 0.2


def test_a_path_is_that_of_euler():
  field, count = plane.exact_velocity(MODES), 4
  path_NBTA = plane.flow_path(field, SOME, count)
  np.testing.assert_array_equal(path_NBTA[0], SOME)
  ends_BTA = flow.euler(plane.velocity_of(field, count), SOME, num_steps=count)
  np.testing.assert_allclose(path_NBTA[-1], ends_BTA, atol=1e-6)


def test_distances_by_hand():
  shifted_BTA = SOME[::-1] + jnp.asarray([3.0, 4.0])
  assert plane.wasserstein(SOME, shifted_BTA) == pytest.approx(5.0, abs=1e-5)
  corner_NBTA = np.asarray([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])[:, None, None]
  assert plane.detour(corner_NBTA) == pytest.approx(2**0.5)
  assert len(MODES.even(10, seed=0)) == 10 and np.bincount(MODES.mode(MODES.even(10, seed=0))).tolist() == [7, 3]


def test_a_network_learns_what_noise_is_in_noisy_actions():
  """That of a flow is learned in the notebook, see tests/docs/test_notebooks.py."""
  training = learning.Training(steps=500, batch_size=128, width=32, depth=2, learning_rate=2e-2)
  field, _ = learning.learned(learning.DIFFUSION, MODES, training, seed=0)
  wanted_BTA, start_BTA = MODES.even(200, seed=0), plane.even_noise(200, seed=1)
  x_BTA = LINEAR.signal(0.5) * wanted_BTA + LINEAR.spread(0.5) * start_BTA
  exact_BTA = plane.exact_noise(MODES, LINEAR)(x_BTA, 0.5)
  assert jnp.square(field(x_BTA, 0.5) - exact_BTA).mean() < 0.3 * jnp.square(exact_BTA).mean()
  path_NBTA = plane.diffusion_path(field, start_BTA, 20, schedule=LINEAR)
  assert plane.wasserstein(path_NBTA[-1], wanted_BTA) < 0.5
