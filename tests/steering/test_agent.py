"""What an agent does, whatever its policy: rows, feeding, a memory that has nothing to say, and one that has."""

import dataclasses
import hashlib
import time

import jax
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.memory.record import KINDS, Record
from pi0rag_jax.openpi import checkpoints
from pi0rag_jax.policy import directory
from pi0rag_jax.policy.policy import padded_size
from pi0rag_jax.steering import networks, rules
from pi0rag_jax.steering.agent import Agent
from pi0rag_jax.steering.fit import UNFITTED, Fit

CONTRACT = ("pi0", "pi05", "pi0_fast", "lstm")
# A policy whose chunk the host reads cannot be asked within a program.
FED = [(kind, feeding) for kind in CONTRACT for feeding in ("overlap", "callback")
       if (kind, feeding) != ("pi0_fast", "callback")]
FLOWS = ("pi0", "pi05")


def decide(agent, raws, noise=None, **options):
  return agent.decide(agent.policy.start(padded_size(len(raws))), raws, noise, **options)[1]


def record(key_E, base_TA, corrected_TA, *, kind="correction", seed=0):
  return Record(key=key_E, base_chunk=base_TA, corrected_chunk=corrected_TA, kind=kind, outcome="success",
                provenance={"source": "expert", "seed": seed})


@pytest.fixture
def make_memory(tmp_path):
  """Returns a function that opens an empty memory of a policy."""
  opened = []

  def memory(policy):
    opened.append(Memory.open(tmp_path / str(len(opened)), **policy.memory_header(), chunk_dtype="float32"))
    return opened[-1]

  yield memory
  for memory in opened:
    memory.close()


@pytest.mark.parametrize("kind", CONTRACT)
def test_a_batch_is_its_rows(make_policy, seen, kind):
  agent = Agent(make_policy(kind))
  together = decide(agent, seen)
  assert together.actions_BTA.shape == (3, *agent.policy.chunk_shape) and np.isfinite(together.actions_BTA).all()
  for row, raw in enumerate(seen):
    alone = decide(agent, [raw])
    np.testing.assert_allclose(together.actions_BTA[row], alone.actions_BTA[0], atol=1e-4)
    np.testing.assert_allclose(together.key_BE[row], alone.key_BE[0], atol=1e-4)
  assert np.abs(together.actions_BTA[0] - together.actions_BTA[1]).max() > 1e-2


@pytest.mark.parametrize("kind", CONTRACT)
def test_a_sample_is_encode_and_decode(make_policy, seen, kind):
  policy = make_policy(kind)
  inputs, carry = policy.prepare(seen[:2]), policy.start(2)
  _, encoded = policy.encode(carry, inputs)
  np.testing.assert_allclose(policy.sample(carry, inputs)[1], policy.decode(encoded), atol=1e-5)


@pytest.mark.parametrize("kind", CONTRACT)
def test_a_row_that_begins_anew_leaves_the_others(make_policy, seen, kind):
  policy = make_policy(kind)
  chunk = lambda carry, raws: np.asarray(policy.sample(carry, policy.prepare(raws))[1])  # noqa: E731
  carry, _ = policy.encode(policy.start(2), policy.prepare(seen[:2]))
  restarted = policy.restart(carry, np.array([True, False]))
  np.testing.assert_array_equal(chunk(restarted, seen[1:])[1], chunk(carry, seen[1:])[1])
  np.testing.assert_array_equal(chunk(restarted, seen[1:])[0], chunk(policy.start(2), seen[1:])[0])


@pytest.mark.parametrize(("kind", "feeding"), FED)
def test_what_has_nothing_to_say_is_the_base_bit_for_bit(make_policy, seen, make_memory, kind, feeding):
  policy = make_policy(kind)
  memory, base = make_memory(policy), decide(Agent(policy), seen[:2])
  agent = Agent(policy, memory, feeding=feeding)
  empty = decide(agent, seen[:2])
  far = [record(key_E + 1000, base.base_BTA[0], base.base_BTA[0] + 0.1, seed=seed)
         for seed, key_E in enumerate(base.key_BE)]
  memory.add(far)
  out_of_range = decide(agent, seen[:2])
  memory.add([record(key_E, base_TA, base_TA + 0.1, seed=5) for key_E, base_TA in zip(base.key_BE, base.base_BTA)])
  no_trust = decide(agent, seen[:2], trust_B=np.zeros(2))
  for found in (empty, out_of_range, no_trust):
    np.testing.assert_array_equal(found.actions_BTA, found.base_BTA)
    np.testing.assert_array_equal(found.used_B, 0)
    # Both ways of feeding have programs of their own; with overlap they are those of the policy alone.
    if feeding == "overlap":
      np.testing.assert_array_equal(found.actions_BTA, base.actions_BTA)
  assert decide(agent, seen[:2]).used_B.min() > 0
  agent.close()


@pytest.mark.parametrize(("kind", "feeding"), FED)
def test_a_memory_moves_the_chunk_to_the_corrected_path_in_the_robots_units(make_policy, seen, make_memory, kind,
                                                                            feeding):
  policy, displaced_TA = make_policy(kind), np.zeros((8, 14), np.float32)
  displaced_TA[:, 2] = np.linspace(0, 0.3, 8)  # rad
  memory, base = make_memory(policy), decide(Agent(policy), seen)
  # Two episodes, so that the memory of a policy without demonstrations knows what is near.
  memory.add([record(base.key_BE[row], base.base_BTA[row], base.base_BTA[row] + displaced_TA, seed=row)
              for row in range(2)])
  agent = Agent(policy, memory, feeding=feeding)
  found = decide(agent, seen)
  assert found.used_B[0] > 0
  np.testing.assert_allclose(found.actions_BTA[0] - found.base_BTA[0], displaced_TA, atol=0.04)
  np.testing.assert_allclose(found.actions_BTA[0, -1, 2] - found.base_BTA[0, -1, 2], 0.3, atol=0.04)
  # Elsewhere the policy does as it does.
  assert found.used_B[2] == 0
  np.testing.assert_array_equal(found.actions_BTA[2], found.base_BTA[2])
  np.testing.assert_allclose(found.base_BTA, base.base_BTA, atol=1e-4)
  agent.close()


def test_what_a_kind_of_policy_cannot_have_is_refused(make_policy, make_memory):
  policy = make_policy("pi0_fast")
  memory = make_memory(policy)
  with pytest.raises(Pi0RagError, match="flow 'pulled' leads a flow elsewhere, which a pi0_fast policy has none of"):
    Agent(policy, memory, "guidance")
  with pytest.raises(Pi0RagError, match="a pi0-FAST's is read from its tokens on the host: use 'overlap'"):
    Agent(policy, memory, feeding="callback")
  with pytest.raises(Pi0RagError, match="callback, overlap"):
    Agent(policy, feeding="magic")
  with pytest.raises(Pi0RagError, match="starts from no noise: leave `noise` out"):
    policy.start_of_flow(1, np.zeros((1, 8, 16)))


# The simulated Panda, whose records displace a path sideways over the first ticks.


@pytest.fixture(scope="module")
def policy(tiny_policy_dir):
  return directory.load(tiny_policy_dir)


def sideways(key_E, base_TA, kind="correction", *, sideways_m=0.02):
  other = np.array(base_TA)
  other[:4, 1] += sideways_m / 4
  return record(key_E, base_TA, other, kind=kind)


@pytest.fixture(scope="module")
def taught(policy, observations, tmp_path_factory):
  """A memory with records of every kind at the observations' own keys, and what the base policy does there."""
  base = decide(Agent(policy), observations)
  with Memory.open(tmp_path_factory.mktemp("taught"), **policy.memory_header()) as memory:
    memory.add([sideways(base.key_BE[0] + 0.01 * i, base.base_BTA[0], kind, sideways_m=0.02 * (1 + i))
                for kind in KINDS for i in range(3)])
    yield memory, base


def fit_of(policy, memory, rule):
  """Returns noise of half a spread for each record, or a network that asks for little."""
  if not rules.is_fitted(rule):
    return UNFITTED
  if not rules.asks_network(rule):
    return Fit(noise={identity: np.full(policy.noise_shape, 0.5, np.float32) for identity, _ in memory.records()})
  size = int(np.prod(policy.chunk_shape))
  inputs = policy.key_dim + (0 if rules.asks_for_noise(rule) else size)
  rng = np.random.default_rng(0)
  return Fit(network=networks.fit(rng.normal(size=(4, inputs)), rng.normal(size=(4, size)), steps=0, seed=0)[0])


def steered(policy, memory, preset, observations, feeding="overlap"):
  """Returns the decision by a preset: the first observation trusts the memory, the second one does not."""
  config = rules.preset(preset, **({"draws": 3} if preset == "best_of_n" else {}))
  agent = Agent(policy, memory, config, feeding=feeding, fit=fit_of(policy, memory, config))
  found = decide(agent, observations, trust_B=np.array([1.0, 0.0]))
  agent.close()
  return found


# Programs take a second each: one of those that differ in a number alone is enough.
@pytest.mark.parametrize("preset", [name for name in rules.PRESETS if not name.endswith("_in_range")])
def test_every_rule_changes_the_path_and_leaves_the_base_where_it_has_no_trust(policy, taught, observations, preset):
  memory, base = taught
  found = steered(policy, memory, preset, observations)
  np.testing.assert_array_equal(found.base_BTA, base.actions_BTA)
  assert found.used_B[0] > 0 and found.weight_BK[0].max() > 0.2
  assert found.used_B[1] == 0 and not found.weight_BK[1].any()
  np.testing.assert_array_equal(found.actions_BTA[1], base.actions_BTA[1])
  moved = found.actions_BTA[0, :, 1].sum() - base.actions_BTA[0, :, 1].sum()
  # Draws of noise need not be better than the base chunk, and the textbook goes a third of the way.
  least = {"textbook": 0.009, "repulsion": -0.003, "injection": 0.005, "traceflow": 0.0, "best_of_n": 0.0,
           "flowdagger": 0.0, "noise_memory": 0.0, "residual_dagger": 0.0}.get(preset, 0.01)
  assert np.abs(found.actions_BTA[0] - base.actions_BTA[0]).max() > 1e-4 or preset == "best_of_n"
  assert moved * np.sign(least) >= abs(least), f"moved {moved:.4f} m to the side"


# Of the rules after the ODE, of those within it and of those that run it often; each compiles the whole policy.
@pytest.mark.parametrize("preset", ["residual", "injection", "best_of_n", "flowdagger"])
def test_both_ways_of_feeding_give_the_same_actions(policy, taught, observations, preset):
  overlap, callback = (steered(policy, taught[0], preset, observations, way) for way in ("overlap", "callback"))
  np.testing.assert_allclose(overlap.actions_BTA, callback.actions_BTA, atol=2e-6)
  np.testing.assert_array_equal(overlap.ids_BK, callback.ids_BK)
  np.testing.assert_allclose(overlap.weight_BK, callback.weight_BK, atol=1e-6)
  np.testing.assert_array_equal(callback.actions_BTA[1], callback.base_BTA[1])


def test_a_fitted_rule_says_that_its_fit_is_missing(policy, taught):
  for preset, what in (("flowdagger", "asks a network"), ("noise_memory", "retrieves noise")):
    with pytest.raises(Pi0RagError, match=f"{what}.*give the agent its fit"):
      Agent(policy, taught[0], preset)


def test_a_search_that_misses_its_deadline_leaves_the_base_action(policy, make_memory, observations, monkeypatch):
  memory, base = make_memory(policy), decide(Agent(policy), observations)
  memory.add([sideways(base.key_BE[0], base.base_BTA[0])])
  slow = memory.query
  monkeypatch.setattr(memory, "query", lambda *args, **kwargs: (time.sleep(0.3), slow(*args, **kwargs))[1])
  agent = Agent(policy, memory, deadline_ms=20)
  found = decide(agent, observations)
  np.testing.assert_array_equal(found.actions_BTA, found.base_BTA)
  assert found.missed_deadline and agent.deadline_misses == 1
  agent.close()


def test_one_robot_is_told_what_a_batch_is(policy, taught, observations):
  agent = Agent(policy, taught[0])
  wanted, out = decide(agent, observations[:1]), agent.infer(observations[0])
  np.testing.assert_array_equal(out["actions"], wanted.actions_BTA[0])
  assert out["actions"].dtype == np.float64 and out["neighbours_used"] == wanted.used_B[0] > 0
  assert {"infer_ms", "prepare_ms", "search_ms", "steer_ms"} == out["policy_timing"].keys()
  noise = np.random.default_rng(0).standard_normal(policy.noise_shape)
  assert np.abs(agent.infer(observations[0], noise=noise)["actions"] - out["actions"]).max() > 1e-3
  agent.compile(observations[0], all_prompts=True)
  agent.close()


def test_fingerprints_stay_what_they_are(policy, tiny_policy_dir):
  """Memories out there name the policy that made them."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(checkpoints.load_params(tiny_policy_dir)):
    digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
  assert policy.fingerprint == f"tiny-{digest.hexdigest()[:16]}"


def test_wrong_observations_say_what_is_wanted(policy, observations):
  agent = Agent(policy)
  no_wrist = {**observations[0], "image": {"base_0_rgb": observations[0]["image"]["base_0_rgb"]}}
  for wrong, message in ((no_wrist, "left_wrist_0_rgb"),
                         ({**observations[0], "state": np.zeros(4)}, "the robot has 10"),
                         ({**observations[0], "state": np.full(10, np.nan)}, "NaN")):
    with pytest.raises(Pi0RagError, match=message):
      agent.infer(wrong)


def test_steering_settings_reach_the_actions(policy, make_memory, observations):
  memory, base = make_memory(policy), decide(Agent(policy), observations)
  memory.add([sideways(base.key_BE[0], base.base_BTA[0])])
  still = dataclasses.replace(rules.PRESETS["residual"], alpha=0.0)
  off = decide(Agent(policy, memory, still), observations)
  np.testing.assert_allclose(off.actions_BTA, np.clip(base.actions_BTA, policy.space.low, policy.space.high), atol=2e-2)
