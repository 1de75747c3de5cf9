"""The benchmark of options: a warm start goes on from the last chunk, and an episode's first decision from zero."""

import numpy as np
import pytest

from eval.benchmarks.options import WarmStarted
from pi0rag_jax.policy import directory
from pi0rag_jax.worlds.episode import Job, Step, Trace


@pytest.fixture(scope="module")
def policy(tiny_policy_dir):
  return directory.load(tiny_policy_dir)


def test_rows_without_a_last_chunk_take_all_steps_from_zero_and_others_the_last(policy, observations):
  chunk_BTA = np.stack([np.full(policy.chunk_shape, np.nan), np.full(policy.chunk_shape, 0.01)])
  _, encoded = policy.encode((), policy.prepare(observations[:1] * 2))
  first_TA, resumed_TA = np.asarray(WarmStarted(policy, 1).decode(encoded, chunk_BTA))
  own_BTA = np.asarray(policy.decode(encoded))
  np.testing.assert_array_equal(first_TA, own_BTA[0])
  assert np.abs(resumed_TA - own_BTA[1]).max() > 1e-4


def test_a_warm_start_is_on_the_straight_way_to_the_chunk(policy, observations):
  _, encoded = policy.encode((), policy.prepare(observations[:1]))
  # All steps: that way begins at zero, whatever the chunk.
  warm = WarmStarted(policy, policy.spec.denoising_steps)
  resumed_BTA = warm.decode(encoded, np.full((1, *policy.chunk_shape), 0.01))
  np.testing.assert_allclose(resumed_BTA, policy.decode(encoded), atol=1e-6)


def test_what_is_left_of_a_chunk_is_held_at_its_end(policy):
  horizon, width = policy.chunk_shape
  warm, trace = WarmStarted(policy, 1), Trace(Job(0, 0))
  assert np.isnan(warm.last_chunk(trace)).all()
  chunk_TA = np.repeat(np.arange(horizon, dtype=np.float32)[:, None], width, axis=1)
  nobody_K = np.zeros(0, int)
  trace.steps.append(Step(0, None, np.zeros(1), chunk_TA, chunk_TA, 0, nobody_K, nobody_K.astype(float)))
  left = [*range(policy.spec.execute_steps, horizon), *[horizon - 1] * policy.spec.execute_steps]
  np.testing.assert_array_equal(warm.last_chunk(trace)[:, 0], left)
