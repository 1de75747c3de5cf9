"""What the project's steering does to a path in the plane."""

import jax.numpy as jnp
import numpy as np

from pi0rag_jax.study import plane, steered
from pi0rag_jax.study.plane import Mixture

FIELD = plane.exact_velocity(Mixture((0.7, 0.3), ((-1.0, 0.5), (1.0, -0.3)), 0.2))
ASKED = np.asarray([[0.2, 0.9]])
OWN = np.asarray(steered.end(FIELD, jnp.zeros((1, 1, 2))))[0]


def test_a_residual_moves_the_end_by_itself_and_leaves_the_path():
  found = steered.steer(FIELD, ASKED, "residual")
  # The policy's own vote for staying is 0.02, the less the farther it is from what the record says.
  own_vote = 0.02 * np.exp(-np.square(ASKED - OWN).sum() / 2)
  np.testing.assert_allclose(found.end_TA, OWN + (ASKED - OWN) / (1 + own_vote), atol=1e-5)
  np.testing.assert_allclose(found.path_NTA[-1], OWN, atol=1e-6)


def test_guidance_ends_where_it_pulls_and_bounded_guidance_is_bounded():
  np.testing.assert_allclose(
    steered.steer(FIELD, ASKED, "guidance", pull=1.0, regularization=0.0).end_TA, ASKED, atol=1e-5)
  near, far = (steered.steer(FIELD, OWN + [[away, 0.0]], "traceflow", pull=1.0).end_TA for away in (20.0, 200.0))
  np.testing.assert_allclose(near, far, atol=1e-5)  # beyond the bound it is asked for in vain
  assert 0.05 < np.linalg.norm(near - OWN) < 0.5


def test_inverted_noise_comes_back_and_more_evaluations_come_nearer():
  between = steered.round_trip(FIELD, jnp.asarray(ASKED[None]), iterations=20)[0]  # no noise leads here
  assert between > 0.5 and steered.round_trip(FIELD, jnp.asarray([[[-1.2, 0.4]]]), iterations=20)[0] < 1e-4
  once, often = (steered.round_trip(FIELD, jnp.asarray(OWN[None]), iterations=count)[0] for count in (1, 5))
  assert often < once / 10
  found = steered.steer(FIELD, OWN + [[0.1, 0.1]], "noise_memory", regularization=0.0)
  np.testing.assert_allclose(found.end_TA, OWN + [[0.1, 0.1]], atol=1e-2)
  assert np.linalg.norm(found.path_NTA[0]) > 0.1  # it starts elsewhere


def test_a_flow_that_is_let_go_half_way_leads_back_to_what_the_policy_knows():
  aside = np.asarray([[-0.3, 0.6]])  # 0.7 beside a mode
  apart = {preset: np.linalg.norm(steered.steer(FIELD, aside, preset).end_TA - aside)
           for preset in ("residual", "warm_start")}
  assert apart["residual"] < 0.03 < 0.3 < apart["warm_start"]
  half = steered.steer(FIELD, aside, "warm_start")
  assert half.path_NTA.shape == (6, 1, 2)
  np.testing.assert_allclose(half.path_NTA[0], 0.5 * aside, atol=1e-6)  # on the way from z = 0
