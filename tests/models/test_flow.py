import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.models import flow


def test_interpolate_by_hand():
  action, noise = jnp.full((1, 2, 1), 2.0), jnp.full((1, 2, 1), 10.0)
  noisy, velocity = flow.interpolate(action, noise, jnp.array([0.25]))
  np.testing.assert_allclose(noisy, np.full((1, 2, 1), 4.0))
  np.testing.assert_allclose(velocity, np.full((1, 2, 1), 8.0))


@pytest.mark.parametrize(("time", "wanted"), [(1.0, 10.0), (0.0, 2.0)])
def test_time_one_is_noise_and_zero_the_action(time, wanted):
  noisy, _ = flow.interpolate(jnp.full((1, 1, 1), 2.0), jnp.full((1, 1, 1), 10.0), jnp.array([time]))
  assert float(noisy[0, 0, 0]) == wanted


def test_sampled_times_have_the_mean_and_range_of_the_beta():
  time = flow.sample_time(jax.random.key(0), (20_000,))
  # Beta(a, b) has the mean a / (a + b).
  assert float(time.mean()) == pytest.approx(1.5 / 2.5 * 0.999 + 0.001, abs=0.01)
  assert bool(((time >= 0.001) & (time <= 1.0)).all())


def test_posemb_by_hand():
  # Width 4 has the two periods 4e-3 and 4: at t = 1 the phases are 250 turns and a quarter turn.
  embedding = flow.posemb_sincos(jnp.array([0.0, 1.0]), 4)
  np.testing.assert_allclose(embedding, [[0, 0, 1, 1], [0, 1, 1, 0]], atol=2e-4)


@pytest.mark.parametrize("num_steps", [1, 4, 10])
def test_euler_is_exact_for_a_constant_velocity(num_steps):
  action, noise = jnp.full((2, 1, 1), 2.0), jnp.array([[[10.0]], [[-3.0]]])
  chunk = flow.euler(lambda x, t: noise - action, noise, num_steps=num_steps)
  np.testing.assert_allclose(chunk, action, atol=1e-5)


def test_euler_passes_the_times_of_openpi():
  seen = []

  def velocity(x_BTA, step):
    jax.debug.callback(lambda i: seen.append(float(flow.times(4)[i])), step)
    return jnp.zeros_like(x_BTA)

  jax.block_until_ready(flow.euler(velocity, jnp.zeros((1, 1, 1)), num_steps=4))
  jax.effects_barrier()
  assert sorted(seen, reverse=True) == [1.0, 0.75, 0.5, 0.25]


def test_inverted_noise_leads_back_to_its_chunk():
  velocity = lambda x, step: jnp.sin(x) + step / 7  # noqa: E731
  noise = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), jnp.float32)
  chunk = flow.euler(velocity, noise, num_steps=7)
  found = flow.invert(velocity, chunk, num_steps=7, iterations=8)
  np.testing.assert_allclose(found, noise, atol=1e-4)
  once = flow.invert(velocity, chunk, num_steps=7, iterations=1)
  assert np.abs(once - noise).max() > 1e-2  # that is the differential equation backwards


def test_steps_taken_in_two_parts_are_the_same_steps():
  velocity = lambda x, step: jnp.sin(3 * x) + step / 7  # noqa: E731
  noise = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), jnp.float32)
  whole = flow.euler(velocity, noise, num_steps=7)
  half = flow.euler(velocity, noise, num_steps=7, last=3)
  np.testing.assert_array_equal(flow.euler(velocity, half, num_steps=7, first=3), whole)
  np.testing.assert_array_equal(flow.euler(velocity, noise, num_steps=7, first=7), noise)
  assert flow.times(7)[0] == 1 and flow.times(7)[7] == pytest.approx(0, abs=1e-6)


def test_a_correction_sees_the_clean_chunk_that_a_step_foresees():
  noise, action = jnp.full((1, 2, 3), 4.0), jnp.full((1, 2, 3), 1.0)
  foreseen = []

  def correct(clean):
    foreseen.append(clean)
    return clean + 0.5 * (2.0 - clean)

  with jax.disable_jit():
    chunk = flow.euler(lambda x, step: (x - action) / flow.times(4)[step], noise, num_steps=4, correct=correct)
  np.testing.assert_allclose(foreseen, np.ones((4, 1, 2, 3)), rtol=1e-5)
  np.testing.assert_allclose(chunk, 1.5, rtol=1e-5)
