"""The moment to go back to, with the expert's plans and without."""

import dataclasses

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import rewind
from pi0rag_jax.learning.detectors import Detection, Findings
from pi0rag_jax.learning.rewind import RewindConfig
from pi0rag_jax.robots.panda import ACTIONS

TIMEOUT = Detection("timeout", 48, 48, 1.0)


@pytest.mark.parametrize(("sideways_m", "index"), [
    ([0, 0, 0.01, 0.01, 0], 2),
    ([0, 0.01, 0, 0.01, 0.01], 3),  # one alone does not persist
    ([0, 0.001, 0.002, 0], 2),  # none persists: the largest
])
def test_privileged(make_steps, sideways_m, index):
  steps = make_steps(sideways_m)
  expert_NTA = np.zeros((len(steps), 16, 5), np.float32)
  assert rewind.privileged(steps, expert_NTA, ACTIONS, RewindConfig()) == index


def test_contradiction_is_of_the_ticks_that_two_chunks_share(make_steps):
  steady, changed, back = make_steps([0.01, 0.01, 0.0])
  assert rewind.contradiction([steady, changed, back], ACTIONS)[0] == 0
  # Twelve ticks of 1 cm each against none: 1 to 12 cm apart.
  np.testing.assert_allclose(rewind.contradiction([steady, changed, back], ACTIONS), [0, 0, 6.5], atol=1e-4)
  late = dataclasses.replace(back, tick=steady.tick + 16)
  assert rewind.contradiction([steady, late], ACTIONS)[1] == 0


def test_a_policy_that_keeps_contradicting_itself_was_lost_from_there_on(make_steps):
  steps = make_steps([0.01] * 5 + [-0.01, 0.01, -0.01, 0.01, -0.01, 0.01, -0.01])
  assert rewind.detected(steps, Findings((TIMEOUT,)), ACTIONS, RewindConfig(own_cost=12.0)) == 5


def test_what_was_before_the_last_grasp_is_no_part_of_the_failure(make_steps):
  steps = make_steps([0.01, -0.01] * 3 + [0.01] * 6)
  findings = Findings((Detection("drop", 42, 40, 0.9),), recovered=26)
  # No contradiction since the grasp: a margin ahead of the drop.
  assert rewind.detected(steps, findings, ACTIONS, RewindConfig(margin_ticks=8)) == 8


def test_without_any_sign_it_is_where_the_policy_contradicts_itself_most(make_steps):
  steps = make_steps([0.01, 0.01, 0.01, 0.012, 0.01, 0.01, 0.01, 0.01])
  assert rewind.detected(steps, Findings((TIMEOUT,)), ACTIONS, RewindConfig(own_window=1)) in (3, 4)


def test_unknown_rule():
  with pytest.raises(Pi0RagError, match="detected, privileged"):
    RewindConfig(rule="oracle")
