"""Limits: how far and how fast a robot may be sent."""

import math

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots import panda
from pi0rag_jax.robots.limits import Limits
from pi0rag_jax.robots.robot import ActionSpace

JOINTS = ActionSpace((False, False), (3.0, 3.0), (-3.0, -3.0), (3.0, 3.0))


def test_a_place_is_bounded_in_where_it_is_and_how_fast_it_moves():
  limits = Limits(low=(-1.0, -1.0), high=(1.0, 1.0), speed=(1.0, math.inf), measured=(0, 1))
  safe = lambda action, before: limits.safe(np.array(action), JOINTS, np.array([0.5, 0.0, 9.0]), before, tick_s=0.1)  # noqa: E731
  np.testing.assert_allclose(safe([2.0, -2.0], None), [0.6, -1.0])  # from where it was measured
  np.testing.assert_allclose(safe([0.0, 0.3], np.array([0.2, 0.0])), [0.1, 0.3], atol=1e-7)


def test_a_change_stays_in_the_workspace_and_leads_back_into_it():
  space = ActionSpace((True, True), (100.0, 100.0), (-1.0, -1.0), (1.0, 1.0))
  limits = Limits(low=(0.0, -math.inf), high=(0.5, math.inf), speed=(math.inf, 0.2), measured=(2, -1), unit=(0.01, 1.0))
  safe = lambda action, x: limits.safe(np.array(action), space, np.array([7.0, 7.0, x]), None, tick_s=0.1)  # noqa: E731
  np.testing.assert_allclose(safe([1.0, 1.0], 0.498), [0.2, 0.02], atol=1e-6)  # 2 mm are left, 1 cm was asked for
  np.testing.assert_allclose(safe([1.0, 0.0], 0.6), [0.0, 0.0], atol=1e-6)
  np.testing.assert_allclose(safe([-1.0, 0.0], 0.6), [-1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("action", [[math.nan, 0.0], [1.0], [math.inf, 0.0]])
def test_what_is_no_action_is_sent_nowhere(action):
  with pytest.raises(Pi0RagError, match="allowed: 2 finite numbers"):
    Limits().safe(np.array(action), JOINTS, np.zeros(0), None, tick_s=0.1)


@pytest.mark.parametrize(("limits", "words"), [
  (Limits(low=(0.0,)), "low is .*allowed: 5 numbers"), (Limits(high=(1.0,) * 5), "say in 'measured'"),
  (Limits(low=(2.0,) * 5, high=(1.0,) * 5), "exceeds high")])
def test_limits_of_another_robot_are_refused(limits, words):
  with pytest.raises(Pi0RagError, match=words):
    limits.check(panda.ACTIONS)


def test_a_state_that_is_too_short_for_the_limits_is_named():
  with pytest.raises(Pi0RagError, match="entry 4 of the state measures a place, the state has 2"):
    Limits(measured=(0, 4)).safe(np.zeros(2), JOINTS, np.zeros(2), None, tick_s=0.1)
