"""The order in which help comes after a failure, and what is recorded of it."""

import dataclasses

import numpy as np
import pytest

from configs import learning as learning_config
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning.online import OnlineConfig, OnlineLearner
from pi0rag_jax.learning.rewind import RewindConfig
from pi0rag_jax.learning.supervisor import SupervisorConfig
from pi0rag_jax.learning.trust import TrustConfig
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.robots.panda import ACTIONS
from pi0rag_jax.worlds.episode import Job, Trace

FREE_MOTION = {"contact_force_arm_N": 0.0, "pad_forces_N": np.zeros(2), "gripper_width_m": 0.08, "gripper_command": 1.0,
               "tool_measured": np.zeros(4), "tool_commanded": np.zeros(4)}
DETECTED = RewindConfig(rule="detected", own_cost=4.0)


@pytest.fixture
def memory(tmp_path):
  with Memory.open(tmp_path / "memory", key_dim=3, action_horizon=16, action_dim=5, encoder="e", policy="p") as memory:
    yield memory


@pytest.fixture
def played(make_steps):
  """Returns a function that plays a job: the trace of a policy that contradicts itself from its third decision on."""

  def play(job, outcome):
    steps = make_steps([0.01, 0.01, -0.01, 0.01, -0.01, 0.01])
    return Trace(job, "pick it up", steps, [FREE_MOTION] * 24, outcome=outcome, ticks=24)

  return play


def make_learner(memory, **config):
  asked = []

  def expert_plan(snapshots):
    asked.append(list(snapshots))
    return np.zeros((len(snapshots), 16, 5), np.float32)

  learner = OnlineLearner(memory, ACTIONS, task="pick", condition="nominal", expert_plan=expert_plan, tick_s=0.05,
                          config=OnlineConfig(**config))
  return learner, asked


def next_job(lesson) -> Job:
  """Returns what is to be run next; there must be something."""
  assert lesson.next_job is not None
  return lesson.next_job


def sources(memory):
  return sorted({record.provenance["source"] for _, record in memory.records()})


def test_a_success_leaves_anchors_and_tells_the_memory(memory, played):
  learner, _ = make_learner(memory)
  lesson = learner.learn(played(Job(5, 0), "success"))
  assert lesson.records_added == 6 and memory.counts()["anchor"] == 6 and memory.episodes == 1
  learner.learn(dataclasses.replace(played(Job(6, 1, trust=0.0), "success")))
  assert memory.episodes == 1  # nothing of the memory was in it


@pytest.mark.parametrize(("alone", "blamed"), [("success", True), ("failure", False)])
def test_a_failure_with_a_say_of_the_memory_is_repeated_without_it_before_anything_is_learned(memory, played, alone,
                                                                                             blamed):
  learner, _ = make_learner(memory, trust=TrustConfig(broken_max=0.02), rewind=DETECTED)
  own = played(Job(5, 0), "failure")
  repetition = next_job(learner.learn(own))
  assert repetition == Job(5, 0, trust=0.0, repeat=True) == learner.launch(repetition)
  assert memory.episodes == 0 and not learner.watch(repetition)
  expert = next_job(learner.learn(played(repetition, alone)))
  assert (memory.episodes, memory.successes) == (1, not blamed)
  lesson = learner.learn(played(expert, "success"))
  assert lesson.trace is own and lesson.alone == alone and lesson.again == (6, 6) and lesson.corrected
  assert next_job(learner.learn(played(Job(6, 1, trust=0.0), "failure"))).by_expert, "the policy's own needs none"


def test_an_episode_that_is_over_keeps_the_slots_of_its_repetition(memory):
  learner, _ = make_learner(memory, trust=TrustConfig(broken_max=0.02), corrected_max=1)
  jobs = [Job(5, 0, past=9)]
  while (lesson := learner.pass_over(jobs[-1], [9, 8, 7], corrected=True, repeated=True)).next_job:
    jobs.append(lesson.next_job)
  assert [job.past for job in jobs] == [9, 8, 7]
  assert not learner._reserve(6), "the expert was there"


def test_the_expert_takes_over_where_the_policy_noticed_that_it_was_lost(memory, played):
  learner, asked = make_learner(memory, rewind=DETECTED)
  job = next_job(learner.learn(played(Job(5, 0), "failure")))
  assert job == Job(5, 0, "moment 2", by_expert=True) and not asked
  lesson = learner.learn(played(job, "success"))
  assert asked == [[f"moment {i}" for i in range(6)]]  # labels only: no plan was needed to rewind
  assert lesson.corrected and lesson.records_added == 6 + 6 and lesson.rewind == 2
  record = next(record for _, record in memory.records())
  assert record.provenance == {"source": "expert", "condition": "nominal", "seed": 5, "rewind": "detected",
                               "decision": 2, "confidence": 1.0, "tick": 0}


def test_the_privileged_rule_asks_for_the_whole_episode(memory, played):
  learner, asked = make_learner(memory)
  job = next_job(learner.learn(played(Job(5, 0), "failure")))
  assert len(asked[0]) == 6 and job.rewind == "moment 0"


def test_a_supervisor_has_so_many_episodes_and_what_was_not_needed_is_for_others(memory, played):
  learner, asked = make_learner(memory, taught_by="takeover", corrected_max=1)
  first, second = learner.launch(Job(5, 0)), learner.launch(Job(6, 1))
  assert (first.watched, second.watched) == (True, False) and learner.watch(first) and not learner.watch(second)
  assert not learner.learn(played(first, "success")).corrected and memory.counts()["anchor"] == 6
  job = learner.launch(Job(7, 2))
  trace = played(job, "success")
  trace.steps[3:] = [dataclasses.replace(step, by="expert") for step in trace.steps[3:]]
  lesson = learner.learn(trace)
  assert job.watched and lesson.corrected and lesson.next_job is None and lesson.records_added == 6
  assert not learner.launch(Job(8, 3)).watched and not asked
  assert memory.counts() == {"anchor": 6, "correction": 6, "failure": 0}
  assert (memory.episodes, memory.successes) == (2, 1)  # helped is not succeeded
  assert learner.learn(played(Job(8, 3), "failure")).next_job is None


def test_a_takeover_that_failed_teaches_nothing_but_has_been_spent(memory, played):
  learner, _ = make_learner(memory, taught_by="takeover", corrected_max=1)
  trace = played(learner.launch(Job(5, 0)), "failure")
  trace.steps[-1] = dataclasses.replace(trace.steps[-1], by="expert")
  lesson = learner.learn(trace)
  assert lesson.corrected and not lesson.records_added and lesson.failure_kind == "timeout" and not len(memory)
  assert not learner.launch(Job(6, 1)).watched


def test_retries_come_first_and_one_that_works_needs_no_expert(memory, played):
  learner, asked = make_learner(memory, retries=2, corrected_max=1, rewind=DETECTED)
  job = next_job(learner.learn(played(Job(5, 0), "failure")))
  assert (job.attempt, job.by_expert, job.rewind) == (1, False, "moment 2")
  job = next_job(learner.learn(played(job, "failure")))
  assert job.attempt == 2
  lesson = learner.learn(played(job, "success"))
  assert not lesson.corrected and lesson.attempts == 2 and lesson.trace and lesson.trace.outcome == "failure"
  assert not asked
  assert sources(memory) == ["retry"]
  # The take-over that was not needed is there for the next failure.
  job = next_job(learner.learn(played(Job(6, 1), "failure")))
  for _ in range(2):
    job = next_job(learner.learn(played(job, "crashed")))
  assert job.by_expert and not learner.learn(played(job, "failure")).records_added


def test_without_an_expert_a_failure_that_no_retry_mends_teaches_nothing(memory, played):
  learner, asked = make_learner(memory, retries=1, corrected_max=0, rewind=DETECTED)
  job = next_job(learner.learn(played(Job(5, 0), "failure")))
  lesson = learner.learn(played(job, "failure"))
  assert lesson.next_job is None and lesson.failure_kind == "timeout" and lesson.attempts == 1
  assert len(memory) == 0 and not asked


def test_a_crash_is_no_failure_of_the_policy(memory, played):
  learner, _ = make_learner(memory)
  lesson = learner.learn(played(Job(5, 0), "crashed"))
  assert lesson.next_job is None and lesson.failure_kind == "" and memory.episodes == 0


def test_every_setting_of_a_supervisor_is_a_flag_of_a_sweep():
  known = {field.name for field in dataclasses.fields(SupervisorConfig)}
  given = learning_config.get_config().stream.learning.supervisor
  assert {"delay_s", "hold_s", "patience", "misses", "false_alarms"} <= set(given) <= known
  assert OnlineConfig.from_dict({"supervisor": given.to_dict()}).supervisor == SupervisorConfig()


def test_configuration_from_a_sweeps():
  config = OnlineConfig.from_dict({"retries": 3, "rewind": {"rule": "detected"}, "detectors": {"arm_force_N": 7.0}})
  assert (config.retries, config.rewind.rule, config.detectors.arm_force_N) == (3, "detected", 7.0)
  with pytest.raises(Pi0RagError, match=r"rewind\.rules.*Did you mean 'rewind\.rule'"):
    OnlineConfig.from_dict({"rewind": {"rules": "detected"}})
  with pytest.raises(Pi0RagError, match=r"rewind\.rule='detected'"):
    OnlineConfig(corrected_max=0, retries=2)
