"""The steered policy: feeding modes agree, an empty memory changes nothing, deadlines are kept."""

import hashlib
import time

import jax
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import KINDS, Record
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.policy.policy import Policy, padded_size
from pi0rag_jax.steering import rules
from pi0rag_jax.steering.agent import SteeredPolicy


@pytest.fixture(scope="module")
def policy(tiny_policy_dir):
  return Policy.load(tiny_policy_dir)


@pytest.fixture
def memory(policy, tmp_path):
  with Memory.open(tmp_path, key_dim=policy.key_dim, action_horizon=16, action_dim=5, encoder="test",
                   policy=policy.fingerprint) as opened:
    yield opened


def correction_at(key_E, base_TA, sideways_m=0.02):
  """Returns a correction that displaces the path sideways over the first ticks."""
  corrected = np.array(base_TA)
  corrected[:4, 1] += sideways_m / 4
  return Record(key=key_E, base_chunk=base_TA, corrected_chunk=corrected, kind="correction", outcome="success",
                provenance={"source": "expert", "seed": 0})


def test_fingerprints_stay_what_they_are(policy, tiny_policy_dir):
  """Memories out there name the policy that made them."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(checkpoints.load_params(tiny_policy_dir)):
    digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
  assert policy.fingerprint == f"tiny-{digest.hexdigest()[:16]}"


def test_chunks_are_finite_and_shaped(policy, observations):
  prediction = SteeredPolicy(policy).infer(observations)
  assert prediction.actions_BTA.shape == (2, 16, 5) and np.isfinite(prediction.actions_BTA).all()
  assert prediction.key_BE.shape == (2, policy.key_dim)
  assert {"prefix", "denoise", "total"} <= prediction.latency_ms.keys()


def test_padding_changes_nothing_but_rounding(policy, observations):
  three = SteeredPolicy(policy).infer([*observations, observations[0]])
  one = SteeredPolicy(policy).infer(observations[:1])
  np.testing.assert_allclose(three.actions_BTA[[0, 2]], one.actions_BTA[[0, 0]], atol=1e-6)
  assert [padded_size(n) for n in (1, 2, 3, 8, 9)] == [1, 2, 4, 8, 16]


def test_noise_decides_where_the_flow_starts(policy, observations):
  noise = np.random.default_rng(0).standard_normal((2, *policy.noise_shape))
  drawn = SteeredPolicy(policy).infer(observations, noise).actions_BTA
  zero = SteeredPolicy(policy).infer(observations).actions_BTA
  assert np.abs(drawn - zero).max() > 1e-3


@pytest.mark.parametrize("feeding", ["overlap", "callback"])
def test_an_empty_memory_is_the_base_policy_bit_for_bit(policy, memory, observations, feeding):
  steered = SteeredPolicy(policy, memory, feeding=feeding).infer(observations)
  np.testing.assert_array_equal(steered.actions_BTA, steered.base_BTA)
  np.testing.assert_array_equal(steered.used_B, 0)
  if feeding == "overlap":  # the same executables as without memory
    np.testing.assert_array_equal(steered.actions_BTA, SteeredPolicy(policy).infer(observations).actions_BTA)


@pytest.mark.parametrize("feeding", ["overlap", "callback"])
def test_a_memory_with_nothing_in_range_is_the_base_policy_bit_for_bit(policy, memory, observations, feeding):
  base = SteeredPolicy(policy).infer(observations)
  memory.add([correction_at(base.key_BE[0] + 100, base.base_BTA[0])])
  steered = SteeredPolicy(policy, memory, feeding=feeding).infer(observations)
  np.testing.assert_array_equal(steered.actions_BTA, steered.base_BTA)


def example_at(key_E, base_TA, kind, *, sideways_m=0.02):
  """Returns a record that says how a path displaced sideways over the first ticks went."""
  other = np.array(base_TA)
  other[:4, 1] += sideways_m / 4
  return Record(key=key_E, base_chunk=base_TA, corrected_chunk=other, kind=kind, outcome="success",
                provenance={"source": "expert", "seed": 0})


@pytest.fixture(scope="module")
def taught(policy, observations, tmp_path_factory):
  """A memory with records of every kind at the observations' own keys, and what the base policy does there."""
  base = SteeredPolicy(policy).infer(observations)
  with Memory.open(tmp_path_factory.mktemp("taught"), key_dim=policy.key_dim, action_horizon=16, action_dim=5,
                   encoder="test", policy=policy.fingerprint) as memory:
    memory.add([example_at(base.key_BE[0] + 0.01 * i, base.base_BTA[0], kind, sideways_m=0.02 * (1 + i))
                for kind in KINDS for i in range(3)])
    yield memory, base


def steered(policy, memory, preset, observations, feeding="overlap"):
  """Returns the decision by a preset: the first observation trusts the memory, the second one does not."""
  config = rules.preset(preset, **({"draws": 3} if preset == "best_of_n" else {}))
  return SteeredPolicy(policy, memory, config, feeding=feeding).infer(observations, trust_B=np.array([1.0, 0.0]))


@pytest.mark.parametrize("preset", rules.PRESETS)
def test_every_rule_changes_the_path_and_leaves_the_base_where_it_has_no_trust(policy, taught, observations, preset):
  memory, base = taught
  found = steered(policy, memory, preset, observations)
  np.testing.assert_array_equal(found.base_BTA, base.actions_BTA)
  assert found.used_B[0] > 0 and found.weight_BK[0].max() > 0.2
  assert found.used_B[1] == 0 and not found.weight_BK[1].any()
  np.testing.assert_array_equal(found.actions_BTA[1], base.actions_BTA[1])
  moved = found.actions_BTA[0, :, 1].sum() - base.actions_BTA[0, :, 1].sum()
  # Draws of noise need not be better than the base chunk, and the textbook goes a third of the way.
  least = {"textbook": 0.009, "repulsion": -0.003, "injection": 0.005, "best_of_n": 0.0}.get(preset, 0.01)
  assert moved * np.sign(least) >= abs(least), f"moved {moved:.4f} m to the side"


# Of the rules after the ODE, of those within it and of those that run it often; each compiles the whole policy.
@pytest.mark.parametrize("preset", ["residual", "injection", "best_of_n"])
def test_both_ways_of_feeding_give_the_same_actions(policy, taught, observations, preset):
  overlap, callback = (steered(policy, taught[0], preset, observations, way) for way in ("overlap", "callback"))
  np.testing.assert_allclose(overlap.actions_BTA, callback.actions_BTA, atol=2e-6)
  np.testing.assert_array_equal(overlap.ids_BK, callback.ids_BK)
  np.testing.assert_allclose(overlap.weight_BK, callback.weight_BK, atol=1e-6)
  np.testing.assert_array_equal(callback.actions_BTA[1], callback.base_BTA[1])


def test_a_search_that_misses_its_deadline_leaves_the_base_action(policy, memory, observations, monkeypatch):
  base = SteeredPolicy(policy).infer(observations)
  memory.add([correction_at(base.key_BE[0], base.base_BTA[0])])
  slow = memory.query
  monkeypatch.setattr(memory, "query", lambda *args, **kwargs: (time.sleep(0.3), slow(*args, **kwargs))[1])
  steered = SteeredPolicy(policy, memory, deadline_ms=20)
  prediction = steered.infer(observations)
  np.testing.assert_array_equal(prediction.actions_BTA, prediction.base_BTA)
  assert prediction.missed_deadline and steered.deadline_misses == 1
  steered.close()


def test_wrong_observations_say_what_is_wanted(policy, observations):
  steered = SteeredPolicy(policy)
  no_wrist = {**observations[0], "image": {"base_0_rgb": observations[0]["image"]["base_0_rgb"]}}
  with pytest.raises(Pi0RagError, match="left_wrist_0_rgb"):
    steered.infer([no_wrist])
  with pytest.raises(Pi0RagError, match="the policy takes 10"):
    steered.infer([{**observations[0], "state": np.zeros(4)}])
  with pytest.raises(Pi0RagError, match="NaN"):
    steered.infer([{**observations[0], "state": np.full(10, np.nan)}])
  with pytest.raises(Pi0RagError, match="callback, overlap"):
    SteeredPolicy(policy, feeding="magic")


def test_steering_settings_reach_the_actions(policy, memory, observations):
  base = SteeredPolicy(policy).infer(observations)
  memory.add([correction_at(base.key_BE[0], base.base_BTA[0])])
  off = SteeredPolicy(policy, memory, rules.preset("residual", alpha=0.0)).infer(observations)
  np.testing.assert_allclose(off.actions_BTA, np.clip(base.actions_BTA, *np.array(
      [policy.spec.action_layout.low, policy.spec.action_layout.high])), atol=2e-2)
