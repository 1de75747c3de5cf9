"""The episode driver: every job ends once, noise belongs to the seed, faults become crashes."""

import collections
import dataclasses

import numpy as np
import pytest

from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.sim.tasks.pick_and_place import PickAndPlace, PickAndPlaceConfig
from pi0rag_jax.steering.agent import SteeredPolicy
from pi0rag_jax.worlds import rollout
from pi0rag_jax.worlds.batch import BatchEnv, EnvConfig
from pi0rag_jax.worlds.episode import Job

CONFIG = EnvConfig(PickAndPlace(PickAndPlaceConfig(time_limit=12)), "nominal")


@pytest.fixture(scope="module")
def policy(tiny_policy_dir):
  return SteeredPolicy(Policy.load(tiny_policy_dir))


def run(policy, jobs, *, slots, processes=0, stochastic=False, **options):
  with BatchEnv(CONFIG, slots=slots, processes=processes) as env:
    traces = rollout.run(env, policy, collections.deque(jobs), stochastic=stochastic, **options)
    return {trace.job.seed: trace for trace in traces}


def assert_same(one, other):
  assert one.outcome == other.outcome and len(one.steps) == len(other.steps)
  for here, there in zip(one.steps, other.steps):
    for name in ("actions_TA", "base_TA", "key_E"):
      np.testing.assert_array_equal(getattr(here, name), getattr(there, name))


def test_more_jobs_than_slots_all_end_once(policy):
  traces = run(policy, [Job(seed, i) for i, seed in enumerate((3, 4, 5))], slots=2)
  assert sorted(traces) == [3, 4, 5]
  for trace in traces.values():
    assert trace.outcome == "failure" and trace.ticks == 12 and len(trace.steps) == 3
    assert len(trace.sensors) == 12 and trace.executed(4).shape == (12, 5)


def test_neither_processes_nor_company_change_an_episode_or_their_order(policy):
  jobs = [Job(seed, i) for i, seed in enumerate(range(3, 10))]
  here, there = (run(policy, jobs, slots=5, processes=processes) for processes in (0, 2))
  assert list(here) == list(there)
  for seed, trace in here.items():
    assert_same(trace, there[seed])
  assert_same(run(policy, [Job(6, 0)], slots=5)[6], here[6])


@pytest.mark.parametrize(("slots", "size"), [(1, 1), (2, 1), (3, 1), (4, 2), (8, 4), (12, 4), (16, 8), (24, 8)])
def test_at_most_half_of_the_slots_decide_together(slots, size):
  assert rollout.group_size(slots) == size


def test_an_episode_so_far_says_where_its_next_decision_starts(policy):
  seen = []

  def start(trace):
    seen.append(len(trace.steps))
    return np.full(policy.policy.noise_shape, 1.0 if trace.steps else 0.0)

  started, plain = run(policy, [Job(3, 0)], slots=1, start=start)[3], run(policy, [Job(3, 0)], slots=1)[3]
  assert seen == [0, 1, 2]
  np.testing.assert_array_equal(started.steps[0].base_TA, plain.steps[0].base_TA)
  assert np.abs(started.steps[1].base_TA - plain.steps[1].base_TA).max() > 1e-4


def test_the_noise_is_the_seeds_own(policy):
  alone = run(policy, [Job(4, 0)], slots=1, stochastic=True)[4]
  beside = run(policy, [Job(3, 0), Job(4, 1)], slots=2, stochastic=True)[4]
  np.testing.assert_allclose(alone.steps[0].base_TA, beside.steps[0].base_TA, atol=1e-5)
  zero = run(policy, [Job(4, 0)], slots=1)[4]
  assert np.abs(alone.steps[0].base_TA - zero.steps[0].base_TA).max() > 1e-4


def test_a_fault_is_a_crash_with_its_traceback_and_leaves_the_others_alone(policy, monkeypatch):
  infer = policy.infer

  def broken(observations, noise=None, **options):
    prediction = infer(observations, noise, **options)
    actions = np.array(prediction.actions_BTA)
    actions[0] = np.nan
    return dataclasses.replace(prediction, actions_BTA=actions)

  monkeypatch.setattr(policy, "infer", broken)
  traces = run(policy, [Job(3, 0), Job(4, 1)], slots=2)
  assert traces[3].outcome == "crashed" and "NaN" in traces[3].error


def test_an_expert_job_records_the_experts_chunks(policy):
  first = run(policy, [Job(3, 0)], slots=1)[3]
  takeover = run(policy, [Job(3, 0, first.steps[1].snapshot, by_expert=True)], slots=1)[3]
  assert takeover.steps[0].tick == 0
  assert np.abs(takeover.steps[0].actions_TA - takeover.steps[0].base_TA).max() > 1e-3
  assert takeover.steps[0].actions_TA.shape == (16, 5)


def test_attempts_have_noise_of_their_own_and_the_policys_own_chunk_without_it(policy):
  first = run(policy, [Job(3, 0)], slots=1)[3].steps[0]
  attempts = [run(policy, [Job(3, 0, attempt=n), Job(4, 1)], slots=2) for n in (1, 1, 2)]
  chunks = [traces[3].steps[0] for traces in attempts]
  np.testing.assert_array_equal(chunks[0].actions_TA, chunks[1].actions_TA)
  assert np.abs(chunks[0].actions_TA - chunks[2].actions_TA).max() > 1e-4
  np.testing.assert_allclose(chunks[0].base_TA, first.base_TA, atol=1e-5)
  # The episode beside them has none.
  np.testing.assert_allclose(attempts[0][4].steps[0].actions_TA, attempts[0][4].steps[0].base_TA, atol=1e-6)


def test_a_witness_tells_the_truth_of_every_tick(policy):
  with BatchEnv(dataclasses.replace(CONFIG, witness=True), slots=1, processes=0) as env:
    trace = next(rollout.run(env, policy, collections.deque([Job(3, 0)]), stochastic=False))
  assert len(trace.truths) == len(trace.sensors) == 12
  assert {"tool_commanded", "tool_measured", "gripper_command"} <= trace.sensors[0].keys()


def test_the_last_word_on_a_job_is_its_launchers(policy):
  with BatchEnv(CONFIG, slots=1, processes=0) as env:
    traces = rollout.run(env, policy, collections.deque([Job(3, 0)]), stochastic=False,
                         launch=lambda job: dataclasses.replace(job, trust=0.0))
    assert [trace.job.trust for trace in traces] == [0.0]
