"""When a supervisor takes over, and when the robot has itself again."""

import dataclasses

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning.supervisor import SupervisorConfig, Watch
from pi0rag_jax.robots.panda import ACTIONS

PLAN = np.zeros((16, 5), np.float32)
TICK_S = 0.25  # a decision a second


def acted(make_steps, wrong, time_limit_s=np.inf, **config):
  """Returns who acts at decisions that are wrong or right, as text: '.' the policy, 'x' the supervisor."""
  watch = Watch(SupervisorConfig(**config), ACTIONS, TICK_S, seed=5, time_limit_s=time_limit_s)
  steps = make_steps([0.01 if sign == "w" else 0.0 for sign in wrong])
  return "".join("x" if watch(step, PLAN) else "." for step in steps)


def test_trouble_that_lasts_is_taken_over_after_a_reaction_time_and_kept_to_the_end(make_steps):
  assert acted(make_steps, "rwwwwrrr", delay_s=2) == "...xxxxx"
  assert acted(make_steps, "wwrrwwrrww", delay_s=2) == ".........."
  assert acted(make_steps, "wwrwwwww", delay_s=3) == ".....xxx"  # a moment of agreement does not undo it all
  assert acted(make_steps, "rw", delay_s=0) == ".x"


def test_who_does_not_get_done_is_helped_before_time_is_out(make_steps):
  assert acted(make_steps, "rrrrrrrrrr", time_limit_s=10.0) == ".......xxx"
  assert acted(make_steps, "rrrrrrrrrr", time_limit_s=10.0, patience=1.0) == acted(make_steps, "rrrrrrrrrr") == "." * 10


def test_the_policy_acts_again_after_a_while_and_may_be_helped_again(make_steps):
  assert acted(make_steps, "wwwwwwwww", delay_s=2, hold_s=2) == "..xx..xx."
  assert acted(make_steps, "rwrrrrww", delay_s=0, hold_s=3) == ".xxx..xx"


def test_some_troubles_are_missed_and_some_alarms_are_false(make_steps):
  assert acted(make_steps, "wwwwww", delay_s=0, misses=1.0) == "......"
  assert acted(make_steps, "rrrr", false_alarms=1.0) == "xxxx"
  half = acted(make_steps, "wr" * 200, delay_s=0, hold_s=1, misses=0.5).count("x")
  assert 60 < half < 140


def test_draws_are_the_seeds_own(make_steps):
  steps = make_steps([0.0] * 40)
  one, same, other = (
    [Watch(SupervisorConfig(false_alarms=0.2, hold_s=1), ACTIONS, TICK_S, seed)] for seed in (5, 5, 6))
  said = [[watch(step, PLAN) for step in steps] for (watch,) in (one, same, other)]
  assert said[0] == said[1] != said[2]


@pytest.mark.parametrize("wrong", [{"delay_s": -1}, {"hold_s": -1}, {"misses": 1.5}, {"false_alarms": -0.1}])
def test_what_cannot_be_is_refused(wrong):
  with pytest.raises(Pi0RagError, match=next(iter(wrong))):
    SupervisorConfig(**wrong)
  assert dataclasses.asdict(SupervisorConfig())["delay_s"] == 1.0


def test_who_is_asked_looks_for_a_while_and_stays_where_something_is_wrong(make_steps):
  asked = iter("a....a...." + "a.....")
  watch = Watch(SupervisorConfig(delay_s=2, look_s=3), ACTIONS, TICK_S, seed=5, asks=lambda step: next(asked) == "a")
  steps = make_steps([0.01 if sign == "w" else 0.0 for sign in "rrrwwrrwww" + "rrrrrr"])
  acts = "".join("x" if watch(step, PLAN) else "." for step in steps)
  # Nobody sees the first trouble, which begins when they have looked away; the second is seen at the third's end.
  assert acts == "." * 9 + "x" * 7 and watch.looks == 2
  assert watch.watched_s(16.0) == 3 + 11
