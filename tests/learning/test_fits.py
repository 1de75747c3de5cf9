"""Fits to records: noise that leads back to their chunks, and networks that foresee them."""

import dataclasses

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import fits
from pi0rag_jax.memory.record import Record
from pi0rag_jax.policy import directory
from pi0rag_jax.steering import networks, paths, targets
from pi0rag_jax.worlds.replay import Executed

SEED = 7


@pytest.fixture(scope="module")
def policy(tiny_policy_dir):
  policy = directory.load(tiny_policy_dir)
  policy.spec = dataclasses.replace(policy.spec, denoising_steps=10)  # fixed points of two steps do not converge
  return policy


def record(key_E, base_TA, corrected_TA, tick, kind="correction"):
  return Record(key=key_E, base_chunk=base_TA, corrected_chunk=corrected_TA, kind=kind, outcome="success", task="task",
                provenance={"source": "expert", "condition": "nominal", "seed": SEED, "tick": tick})


@pytest.fixture(scope="module")
def moments(policy, observations):
  """Two decisions: the noise of each, records of the chunks that come of it, and the episode that they are of."""
  noise_BTX = np.random.default_rng(0).standard_normal((2, *policy.noise_shape)).astype(np.float32)
  _, encoded = policy.encode((), policy.prepare(observations))
  own_BTA, drawn_BTA = np.asarray(policy.decode(encoded)), np.asarray(policy.decode(encoded, noise_BTX))
  key_BE = np.asarray(encoded.key_BE)
  records = [record(key_BE[0], own_BTA[0], drawn_BTA[0], 0), record(key_BE[1], own_BTA[1], drawn_BTA[1], 4),
             record(key_BE[1], own_BTA[1], own_BTA[1], 4, kind="anchor")]
  episode = Executed("stream", SEED, True, np.array([0, 4]), ("expert", "policy"), np.zeros((8, 5), np.float32))
  return noise_BTX, records, [(episode, observations)]


def test_noise_of_a_chunk_is_what_the_flow_came_from(policy, moments):
  noise_BTX, records, seen = moments
  found = fits.invert(policy, records, seen)
  assert found.keys() == {fits.identity(one) for one in records} and len(found) == 3
  for row in range(2):
    np.testing.assert_allclose(found[fits.identity(records[row])].noise_TX, noise_BTX[row], atol=0.02)
  np.testing.assert_allclose(found[fits.identity(records[2])].noise_TX, 0, atol=0.02)
  assert max(one.error for one in found.values()) < 0.01


def test_a_world_that_shows_something_else_is_refused(policy, moments):
  _, records, [(episode, observations)] = moments
  with pytest.raises(Pi0RagError, match=r"seen at task/nominal/7/0/correction has a key .* units from the record's"):
    fits.invert(policy, records, [(episode, observations[::-1])])


def test_networks_foresee_what_their_records_ask_for(policy, moments, monkeypatch):
  monkeypatch.setattr(networks, "LEARNING_RATE", 3e-3)
  monkeypatch.setattr(networks, "STEPS_PER_EPISODE", 60)
  monkeypatch.setattr(networks, "BATCH_SIZE", 16)
  _, records, _ = moments
  records, key_BE = records[:2], np.stack([one.key for one in records[:2]])
  noise = {fits.identity(one): np.full(policy.noise_shape, value, np.float32) for one, value in zip(records, (1, -1))}
  network, error = fits.noise_network(records, noise, episodes=1, seed=0)
  assert error < 0.1
  np.testing.assert_allclose(targets.bounded_noise(networks.apply(network, key_BE)).mean(axis=1), [1, -1], atol=0.3)
  network, error = fits.residual_network(records, policy, episodes=1, seed=0)
  base_BTA = np.stack([one.base_chunk for one in records])
  foreseen = networks.apply(network, targets.residual_inputs(key_BE, base_BTA, policy.space))
  wanted = paths.scaled(paths.to_path(np.stack([one.corrected_chunk for one in records]) - base_BTA, policy.space),
                        policy.space)
  assert np.abs(foreseen - wanted.reshape(2, -1)).mean() < 0.5 * np.abs(wanted).mean()
