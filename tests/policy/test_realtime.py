"""Real-time chunking: what is executed anyway is kept, what follows is led to it, and the rest is the policy's own."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import flow
from pi0rag_jax.policy import directory, realtime
from pi0rag_jax.policy.realtime import Overlap, Pace
from pi0rag_jax.serving import chunk_broker
from pi0rag_jax.steering.agent import Agent

HORIZON = 16


def test_weights_fall_from_the_delay_to_the_end_of_what_is_known():
  weight_T = realtime.weights(HORIZON, delay=3, known=12)
  assert (weight_T[:3] == 1).all() and (weight_T[12:] == 0).all() and (np.diff(weight_T[2:13]) < 0).all()
  # Equation 5 of the paper at its first soft tick: c = 9/10.
  assert weight_T[3] == pytest.approx(0.9 * (np.exp(0.9) - 1) / (np.e - 1), rel=1e-6)
  np.testing.assert_array_equal(realtime.weights(HORIZON, delay=4, known=4), np.arange(HORIZON) < 4)


def test_a_guide_is_reached_where_the_flow_follows_its_start():
  # A flow whose velocity leads each start to itself: x0 = x - t v with v = 0 is x, whose gradient is 1.
  guide = flow.Guide(jnp.ones((1, 4, 2)), jnp.asarray([[1.0, 0.5, 0.0, 0.0]]))
  end_BTA = flow.euler(lambda x_BTA, step: 0 * x_BTA, jnp.zeros((1, 4, 2)), num_steps=10, guide=guide)
  assert (end_BTA[0, 0] > 0.9).all() and (end_BTA[0, 1] > 0.5).all() and (end_BTA[0, 1] < end_BTA[0, 0]).all()
  assert (end_BTA[0, 2:] == 0).all()


def test_a_chunk_goes_on_from_the_one_before(tiny_policy_dir):
  policy = directory.load(str(tiny_policy_dir))
  agent, observation = Agent(policy), {**policy.robot.example(), "prompt": "pick"}
  rng, dim = np.random.default_rng(0), policy.space.dim
  before_TA = rng.uniform(-0.02, 0.02, (HORIZON, dim)).astype(np.float32)
  carry = policy.start(1)
  decide = lambda *overlaps: agent.decide(carry, [observation] * len(overlaps), overlaps=overlaps)[1]  # noqa: E731
  own, found = decide(None), decide(Overlap(before_TA, passed=4, delay=3), None)
  np.testing.assert_array_equal(found.actions_BTA[0, :3], before_TA[4:7])
  assert not np.array_equal(found.actions_BTA[0, 3:], found.base_BTA[0, 3:])
  # Beside it a row that goes on from nothing is the policy's own; only rounding differs from program to program.
  np.testing.assert_allclose(found.actions_BTA[1], own.base_BTA[0], atol=1e-5)
  with pytest.raises(Pi0RagError, match="delay of 13 ticks is longer"):
    decide(Overlap(before_TA, passed=4, delay=13))


def test_what_a_memory_changes_grows_as_the_old_chunk_weighs_less(tiny_policy_dir):
  space = directory.load(str(tiny_policy_dir)).space
  lead = realtime.lead([Overlap(np.zeros((HORIZON, space.dim), np.float32), 4, 2)], HORIZON, space.dim)
  going_BTA, change_BTA = np.zeros((2, 1, HORIZON, space.dim), np.float32)
  change_BTA[..., 0] = 0.01
  found_T = realtime.changed(going_BTA, change_BTA, lead, space)[0, :, 0]
  assert (found_T[:2] == 0).all() and (np.diff(found_T[2:13]) > 0).all() and (found_T[12:] == np.float32(0.01)).all()


def test_a_client_that_says_nothing_is_timed_by_the_clock():
  now = [0.0]
  pace = Pace(0.05, clock=lambda: now[0])
  chunk_TA = np.zeros((HORIZON, 2), np.float32)
  assert pace.seen(None) is None
  now[0] = 0.11
  pace.answered(chunk_TA)
  now[0] = 0.40
  found = pace.seen(None)
  assert (found.passed, found.delay) == (8, 3)  # 0.40 s and 0.11 s in ticks of 0.05 s
  pace.answered(chunk_TA)
  now[0] = 2.0
  assert pace.seen(None) is None  # the chunk is over
  assert pace.seen({"passed": 2, "delay": 1}).delay == 1


@pytest.mark.parametrize("told", [3, {"passed": 1}, {"passed": -1, "delay": 0}, {"passed": 1, "delay": 0.5},
                                  {"passed": True, "delay": 0}])
def test_what_a_client_says_wrongly_is_refused(told):
  with pytest.raises(Pi0RagError, match="two numbers of ticks"):
    realtime.split({realtime.ENTRY: told})
  assert chunk_broker.ENTRY == realtime.ENTRY


def test_a_policy_without_a_flow_says_so():
  spec = types.SimpleNamespace(family="pi0_fast", control_hz=10.0)
  with pytest.raises(Pi0RagError, match="which a pi0_fast policy has none of"):
    Agent(types.SimpleNamespace(spec=spec, has_flow=False, start=lambda rows: ()), real_time=True)
