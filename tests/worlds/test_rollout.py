"""The episode driver: every job ends once, noise belongs to the seed, faults become crashes."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy import directory
from pi0rag_jax.sim.tasks.pick_and_place import PickAndPlace, PickAndPlaceConfig
from pi0rag_jax.steering.agent import Agent
from pi0rag_jax.worlds import rollout
from pi0rag_jax.worlds.batch import BatchEnv, Moment
from pi0rag_jax.worlds.episode import Job, Trace
from pi0rag_jax.worlds.world import WorldConfig

CONFIG = WorldConfig(PickAndPlace(PickAndPlaceConfig(time_limit=12)), "nominal")


@pytest.fixture(scope="module")
def agent(tiny_policy_dir):
  return Agent(directory.load(tiny_policy_dir))


def run(agent, jobs, *, slots, processes=0, **options):
  with BatchEnv(CONFIG, slots=slots, processes=processes) as env:
    return {trace.job.seed: trace for trace in rollout.run(env, agent, collections.deque(jobs), **options)}


def assert_same(one, other):
  assert one.outcome == other.outcome and len(one.steps) == len(other.steps)
  for here, there in zip(one.steps, other.steps):
    for name in ("actions_TA", "base_TA", "key_E"):
      np.testing.assert_array_equal(getattr(here, name), getattr(there, name))


def test_more_jobs_than_slots_all_end_once(agent):
  traces = run(agent, [Job(seed, i) for i, seed in enumerate((3, 4, 5))], slots=2)
  assert sorted(traces) == [3, 4, 5]
  for trace in traces.values():
    assert trace.outcome == "failure" and trace.ticks == 12 and len(trace.steps) == 3
    assert len(trace.sensors) == 12 and trace.executed().shape == (12, 5)


def test_neither_processes_nor_company_change_an_episode_or_their_order(agent):
  jobs = [Job(seed, i) for i, seed in enumerate(range(3, 10))]
  here, there = (run(agent, jobs, slots=5, processes=processes) for processes in (0, 2))
  assert list(here) == list(there)
  for seed, trace in here.items():
    assert_same(trace, there[seed])
  assert_same(run(agent, [Job(6, 0)], slots=5)[6], here[6])


@pytest.mark.parametrize(("slots", "size"), [(1, 1), (2, 1), (3, 1), (4, 2), (8, 4), (12, 4), (16, 8), (24, 8)])
def test_at_most_half_of_the_slots_decide_together(slots, size):
  assert rollout.group_size(slots) == size


def test_an_episode_so_far_says_where_its_next_decision_starts(agent):
  seen = []

  def start(trace):
    seen.append(len(trace.steps))
    return np.full(agent.policy.noise_shape, 1.0 if trace.steps else 0.0)

  started, plain = run(agent, [Job(3, 0)], slots=1, start=start)[3], run(agent, [Job(3, 0)], slots=1)[3]
  assert seen == [0, 1, 2]
  np.testing.assert_array_equal(started.steps[0].base_TA, plain.steps[0].base_TA)
  assert np.abs(started.steps[1].base_TA - plain.steps[1].base_TA).max() > 1e-4


def test_the_noise_is_the_seeds_own(agent):
  alone = run(agent, [Job(4, 0)], slots=1, start="new")[4]
  beside = run(agent, [Job(3, 0), Job(4, 1)], slots=2, start="new")[4]
  np.testing.assert_allclose(alone.steps[0].base_TA, beside.steps[0].base_TA, atol=1e-5)
  zero = run(agent, [Job(4, 0)], slots=1)[4]
  assert np.abs(alone.steps[0].base_TA - zero.steps[0].base_TA).max() > 1e-4


def test_a_fault_is_a_crash_with_its_traceback_and_leaves_the_others_alone(agent, monkeypatch):
  decide = agent.decide

  def broken(*args, **options):
    carry, decision = decide(*args, **options)
    actions = np.array(decision.actions_BTA)
    actions[0] = np.nan
    return carry, dataclasses.replace(decision, actions_BTA=actions)

  monkeypatch.setattr(agent, "decide", broken)
  traces = run(agent, [Job(3, 0), Job(4, 1)], slots=2)
  assert traces[3].outcome == "crashed" and "NaN" in traces[3].error


def test_an_expert_job_records_the_experts_chunks(agent):
  first = run(agent, [Job(3, 0)], slots=1)[3]
  takeover = run(agent, [Job(3, 0, first.steps[1].snapshot, by_expert=True)], slots=1)[3]
  assert takeover.steps[0].tick == 0
  assert np.abs(takeover.steps[0].actions_TA - takeover.steps[0].base_TA).max() > 1e-3
  assert takeover.steps[0].actions_TA.shape == (16, 5)


def test_who_watches_acts_where_it_says_and_the_others_are_left_alone(agent):
  told = []

  def watch(job):
    def acts(step, plan_TA):
      told.append((step.by, plan_TA.shape, np.array(step.actions_TA)))
      return step.tick == 4
    return acts if job.watched else None

  traces = run(agent, [Job(3, 0, watched=True), Job(4, 1)], slots=2, watch=watch)
  # Who is helped has the whole time limit again from there on.
  assert [(step.by, step.tick) for step in traces[3].steps] == [
      ("policy", 0), ("expert", 4), ("policy", 8), ("policy", 12)] and traces[3].ticks == 16 and traces[3].helped
  assert {step.by for step in traces[4].steps} == {"policy"} and not traces[4].helped
  assert [(by, shape) for by, shape, _ in told] == [("policy", (16, 5))] * 4
  assert np.abs(traces[3].steps[1].actions_TA - told[1][2]).max() > 1e-3
  plain = run(agent, [Job(4, 0)], slots=2)[4]
  assert_same(plain, traces[4])


def test_attempts_have_noise_of_their_own_and_the_policys_own_chunk_without_it(agent):
  first = run(agent, [Job(3, 0)], slots=1)[3].steps[0]
  attempts = [run(agent, [Job(3, 0, attempt=n), Job(4, 1)], slots=2) for n in (1, 1, 2)]
  chunks = [traces[3].steps[0] for traces in attempts]
  np.testing.assert_array_equal(chunks[0].actions_TA, chunks[1].actions_TA)
  assert np.abs(chunks[0].actions_TA - chunks[2].actions_TA).max() > 1e-4
  np.testing.assert_allclose(chunks[0].base_TA, first.base_TA, atol=1e-5)
  # The episode beside them has none.
  np.testing.assert_allclose(attempts[0][4].steps[0].actions_TA, attempts[0][4].steps[0].base_TA, atol=1e-6)


def test_a_witness_tells_the_truth_of_every_tick(agent):
  with BatchEnv(dataclasses.replace(CONFIG, witness=True), slots=1, processes=0) as env:
    trace = next(rollout.run(env, agent, collections.deque([Job(3, 0)])))
  assert len(trace.truths) == len(trace.sensors) == 12
  assert {"tool_commanded", "tool_measured", "gripper_command"} <= trace.sensors[0].keys()


def test_what_a_policy_carries_stays_with_its_episode_and_begins_anew_with_each(agent, monkeypatch):
  encode = agent.policy.encode

  def counting(carry, inputs):
    _, encoded = encode((), inputs)
    return carry + 1, encoded.replace(key_BE=np.repeat(np.asarray(carry)[:, None], 2, axis=1))

  monkeypatch.setattr(agent.policy, "encode", counting)
  monkeypatch.setattr(agent.policy, "start", lambda rows: np.zeros(rows))
  monkeypatch.setattr(agent.policy, "restart", lambda carry, rows_B: np.where(rows_B, 0, carry))
  rewound = run(agent, [Job(3, 0)], slots=1)[3].steps[1].snapshot
  # Episodes of other lengths move up in their group: the second one is over sooner, and a third one takes its place.
  longer = dataclasses.replace(CONFIG, task=PickAndPlace(PickAndPlaceConfig(time_limit=20)))
  with BatchEnv(longer, slots=4, processes=0) as env:
    jobs = collections.deque([Job(3, 0), Job(4, 1, rewind=rewound), Job(5, 2), Job(6, 3), Job(7, 4)])
    traces = list(rollout.run(env, agent, jobs))
  assert len(traces) == 5
  for trace in traces:
    assert [step.key_E[0] for step in trace.steps] == list(range(len(trace.steps)))


def test_what_a_policy_carries_begins_anew_where_it_is_told_something_else(agent, monkeypatch):
  monkeypatch.setattr(agent.policy, "restart", lambda carry, rows_B: np.where(rows_B, 0, carry))
  running = [rollout._Running(Trace(Job(3, 0), prompt="open the drawer"), np.random.default_rng(0), row=row,
                              answer=Moment({"prompt": told}, None, False, False, 4, (), ()))
             for row, told in enumerate(("open the drawer", "turn on the led light"))]
  assert rollout._carried(agent.policy, np.array([5, 7]), running).tolist() == [5, 0]


def test_the_last_word_on_a_job_is_its_launchers(agent):
  with BatchEnv(CONFIG, slots=1, processes=0) as env:
    traces = rollout.run(env, agent, collections.deque([Job(3, 0)]),
                         launch=lambda job: dataclasses.replace(job, trust=0.0))
    assert [trace.job.trust for trace in traces] == [0.0]


@pytest.mark.parametrize("real_time", [False, True])
def test_a_late_chunk_begins_with_what_was_executed_meanwhile(agent, real_time):
  loop = rollout.Loop(delay=2, real_time=real_time)
  late, plain = run(agent, [Job(3, 0)], slots=1, loop=loop)[3], run(agent, [Job(3, 0)], slots=1)[3]
  np.testing.assert_array_equal(late.steps[0].actions_TA, plain.steps[0].actions_TA)
  for before, after in itertools.pairwise(late.steps):
    np.testing.assert_array_equal(after.actions_TA[:2], before.actions_TA[4:6])
    assert np.array_equal(after.actions_TA[2:], after.base_TA[2:]) != real_time
  for delay, why in ((5, "allowed: a delay of 0 to 4"), (-1, "allowed: a delay of 0 to 4")):
    with pytest.raises(Pi0RagError, match=why):
      run(agent, [Job(3, 0)], slots=1, loop=rollout.Loop(delay))
