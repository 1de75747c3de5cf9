"""The benchmark of options: a warm start goes on from the last chunk, and an episode's first decision from zero."""

import numpy as np
import pytest

from eval.benchmarks.options import WarmStarted
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.worlds.episode import Job, Step, Trace


@pytest.fixture(scope="module")
def policy(tiny_policy_dir):
  return WarmStarted.load(tiny_policy_dir)


def observation(policy):
  size, rng = policy.spec.image_size, np.random.default_rng(0)
  images = {name: rng.integers(0, 256, (size, size, 3), np.uint8) for name in policy.spec.model.image_keys}
  return {"image": images, "state": np.zeros(policy.spec.state_dim, np.float32), "prompt": "pick up the red cube"}


def test_rows_without_a_last_chunk_take_all_steps_from_zero_and_others_the_last(policy):
  policy.first_step = policy.spec.denoising_steps - 1
  chunk_BTA = np.stack([np.full(policy.chunk_shape, np.nan), np.full(policy.chunk_shape, 0.01)])
  encoded = policy.encode([observation(policy)] * 2)
  first_TA, resumed_TA = np.asarray(policy.denoise(encoded, chunk_BTA))
  own_BTA = np.asarray(Policy.denoise(policy, encoded, None))
  np.testing.assert_array_equal(first_TA, own_BTA[0])
  assert np.abs(resumed_TA - own_BTA[1]).max() > 1e-4


def test_a_warm_start_is_on_the_straight_way_to_the_chunk(policy):
  policy.first_step = 0  # where that way begins: at zero, whatever the chunk
  del policy.__dict__["_resumed"]
  encoded = policy.encode([observation(policy)])
  resumed_BTA = policy.denoise(encoded, np.full((1, *policy.chunk_shape), 0.01))
  np.testing.assert_allclose(resumed_BTA, Policy.denoise(policy, encoded, None), atol=1e-6)


def test_what_is_left_of_a_chunk_is_held_at_its_end(policy):
  horizon, width = policy.chunk_shape
  trace = Trace(Job(0, 0))
  assert np.isnan(policy.last_chunk(trace)).all()
  chunk_TA = np.repeat(np.arange(horizon, dtype=np.float32)[:, None], width, axis=1)
  nobody_K = np.zeros(0, int)
  trace.steps.append(Step(0, None, np.zeros(1), chunk_TA, chunk_TA, 0, nobody_K, nobody_K.astype(float)))
  left = [*range(policy.spec.execute_steps, horizon), *[horizon - 1] * policy.spec.execute_steps]
  np.testing.assert_array_equal(policy.last_chunk(trace)[:, 0], left)
