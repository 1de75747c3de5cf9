"""Steering: weights by distance, nothing in range, presets."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import ANCHOR, CORRECTION, FAILURE, KINDS
from pi0rag_jax.models import flow as flow_matching
from pi0rag_jax.models.flow import Ode
from pi0rag_jax.robots.panda import ACTIONS
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering import networks, paths, rules, targets

BASE = np.random.default_rng(0).uniform(ACTIONS.low, ACTIONS.high, (2, 16, 5)).astype(np.float32)
STILL = np.zeros_like(BASE)
PLACES = dataclasses.replace(ACTIONS, integrates=(False,) * 5)


def neighbours(distance_BK, residual=0.0, mask=True, base_BTA=STILL):
  """Returns neighbours with the policy's own chunk and a better one, whose path lies `residual` metres along y."""
  distance_BK = np.asarray(distance_BK, np.float32)
  base_BKTA = np.repeat(base_BTA[: len(distance_BK), None], distance_BK.shape[1], axis=1)
  corrected_BKTA = base_BKTA.copy()
  corrected_BKTA[:, :, 0, 1] += residual
  flat = (-1, *BASE.shape[1:])
  aligned = paths.aligned_residual(base_BKTA.reshape(flat), corrected_BKTA.reshape(flat), ACTIONS, band=6)
  return {"distance_BK": distance_BK, "mask_BK": np.full(distance_BK.shape, mask),
          "kind_BK": np.full(distance_BK.shape, KINDS.index(CORRECTION), np.int8),
          "trust_BK": np.ones(distance_BK.shape, np.float32),
          "base_BKTA": base_BKTA, "corrected_BKTA": corrected_BKTA,
          "residual_BKTA": aligned.reshape(base_BKTA.shape)}


def fitted(near, config):
  """Returns neighbours with what a rule reads that was fitted: noise, or a network of random numbers."""
  rng, count = np.random.default_rng(3), near["base_BKTA"].shape[:2]
  near |= {"noise_BKTX": np.full((*count, *BASE.shape[1:]), 0.5, np.float32), "key_BE": np.ones((count[0], 3))}
  if not rules.asks_network(config):
    return near
  inputs = 3 if rules.asks_for_noise(config) else 3 + BASE[0].size
  network, _ = networks.fit(rng.normal(size=(4, inputs)), rng.normal(size=(4, BASE[0].size)), steps=0, seed=0)
  return near | {"network": network}


def straight_flow(action_BTA):
  """Returns a flow of 8 steps whose velocity always points to one chunk: whatever it starts from, it ends there."""
  def run(x_BTA, **steps):
    return flow_matching.euler(
      lambda x, step: (x - action_BTA) / jnp.asarray(flow_matching.times(8))[step], x_BTA, num_steps=8, **steps)

  same = lambda chunk: chunk  # noqa: E731
  return Ode(run, jnp.zeros(action_BTA.shape), 8, same, same)


@pytest.mark.parametrize("preset", rules.PRESETS)
def test_nothing_in_range_is_the_base_bit_for_bit(preset):
  far = neighbours([[3.1, 9.0], [0.0, 0.0]], 0.02)
  config = rules.preset(preset, draws=2)
  far["mask_BK"][1] = False
  far["mask_BK"] &= math.isfinite(config.range)  # else only an empty memory has nothing to say
  actions, used, say = rules.steer(jnp.asarray(BASE), fitted(far, config), config, ACTIONS,
                                      flow=straight_flow(jnp.asarray(BASE)))
  np.testing.assert_array_equal(actions, BASE)
  np.testing.assert_array_equal(used, 0)
  np.testing.assert_array_equal(say, 0)


@pytest.mark.parametrize("preset", rules.PRESETS)
def test_trust_in_the_memory_is_a_share_of_the_way(preset):
  config, near = rules.preset(preset, draws=2), neighbours([[0.1, 0.2]] * 2, 0.02, base_BTA=BASE)
  near["corrected_BKTA"][..., 1] = 0.01
  near["kind_BK"][...] = KINDS.index(config.kinds[0])
  steer = functools.partial(rules.steer, jnp.asarray(BASE), fitted(near, config), config, ACTIONS,
                            flow=straight_flow(jnp.asarray(BASE)))
  whole, half, none = (np.asarray(steer(trust_B=jnp.full(2, share))[0]) for share in (1.0, 0.5, 0.0))
  np.testing.assert_array_equal(whole, steer()[0])
  np.testing.assert_array_equal(none, BASE)
  np.testing.assert_allclose(half, (whole + BASE) / 2, atol=1e-6)
  assert (steer(trust_B=jnp.zeros(2))[1] == 0).all()


@pytest.mark.parametrize(("preset", "space"), [
  *((preset, ACTIONS) for preset in rules.PRESETS), ("residual", PLACES), ("absolute", PLACES)])
def test_votes_are_the_same_on_every_machine(rounded_products, preset, space):
  config = rules.preset(preset, draws=2)
  near = fitted(neighbours([[0.1, 0.2]] * 2), config)
  steer = lambda base_BTA, near: rules.steer(base_BTA, near, config, space, flow=straight_flow(base_BTA))  # noqa: E731
  assert not rounded_products(steer, BASE, near)


def test_the_residual_is_the_kernel_weighted_mean():
  config = rules.preset("mean", regularization=0.5)
  still = np.zeros((1, 16, 5), np.float32)
  near = neighbours([[0.0, config.tau]])
  near["corrected_BKTA"][0, 0, 0, 1] = 0.012
  near["corrected_BKTA"][0, 1, 0, 1] = -0.004
  actions, used, _ = rules.steer(jnp.asarray(still), near, config, ACTIONS)
  weight = np.exp(-0.5)
  expected = (0.012 - 0.004 * weight) / (1 + weight + 0.5)
  np.testing.assert_allclose(np.asarray(actions)[0, :, 1].sum(), expected, rtol=1e-5)
  assert used[0] == 2


def test_the_larger_party_decides_where_records_contradict_each_other():
  near = neighbours([[0.0, 0.0, 0.0]], 0.03)
  near["corrected_BKTA"][0, 2, 0, 1] = -0.03
  config = rules.preset("residual", regularization=0.0, mode_width=1.0)
  moved = lambda config: np.asarray(  # noqa: E731
      rules.steer(jnp.zeros((1, 16, 5)), near, config, ACTIONS)[0])[0, :, 1].sum()
  # Two ask for 3 cm, one for as much to the other side: 6 widths away, it counts for nothing.
  np.testing.assert_allclose(moved(config), 0.03, rtol=1e-4)
  np.testing.assert_allclose(moved(rules.preset("mean", regularization=0.0)), 0.01, rtol=1e-4)
  near["trust_BK"][0, :2] = 0.2  # what they lose, the policy itself has: no change
  np.testing.assert_allclose(moved(config), 0.0, atol=1e-3)


def test_a_record_of_another_plan_has_less_of_a_say():
  config = rules.preset("residual", plan_tau=2.0)
  near = neighbours([[0.0, 0.0]], 0.01)
  near["base_BKTA"][0, 1, 0, 0] = 0.02  # a path that is 2 cm away all the time
  _, _, say = rules.steer(jnp.zeros((1, 16, 5)), near, config, ACTIONS)
  np.testing.assert_allclose(say, [[1.0, np.exp(-0.5)]], rtol=1e-5)
  _, _, say = rules.steer(jnp.zeros((1, 16, 5)), near, rules.preset("raw"), ACTIONS)
  np.testing.assert_allclose(say, [[1.0, 1.0]])


def test_an_anchor_without_residual_holds_a_correction_back():
  still = jnp.zeros((1, 16, 5))
  alone, _, _ = rules.steer(still, neighbours([[0.5]], 0.01), rules.preset("mean"), ACTIONS)
  both = neighbours([[0.5, 0.5]], 0.01)
  both["corrected_BKTA"][0, 1] = 0
  both["kind_BK"][0, 1] = KINDS.index(ANCHOR)
  config = rules.preset("mean", regularization=0.0)
  held, _, _ = rules.steer(still, both, config, ACTIONS)
  np.testing.assert_allclose(np.asarray(held)[0, :, 1].sum(), 0.01 / (1 + config.anchor_weight), rtol=1e-5)
  assert np.asarray(held)[0, :, 1].sum() < np.asarray(alone)[0, :, 1].sum()


def test_the_displacement_is_bounded():
  actions, _, _ = rules.steer(jnp.zeros((1, 16, 5)), neighbours([[0.0]], 0.5),
                              rules.preset("residual", regularization=0.0),
                              dataclasses.replace(ACTIONS, reach=(0.03,) * 3 + (math.inf,) * 2))
  np.testing.assert_allclose(np.asarray(actions)[0, :, 1].sum(), 0.03, atol=1e-6)


def test_the_textbook_blend_moves_a_part_of_the_way():
  near = neighbours([[0.1, 0.2, 0.3]])
  near["corrected_BKTA"][...] = 0.01
  actions, _, _ = rules.steer(jnp.zeros((1, 16, 5)), near, rules.preset("textbook"), ACTIONS)
  np.testing.assert_allclose(actions, 0.003, atol=1e-7)


def test_the_absolute_blend_goes_all_the_way_to_the_weighted_chunk():
  config = rules.preset("absolute", anchor_weight=0.5, mode_width=np.inf)
  near = neighbours([[0.2, 0.2]], base_BTA=BASE)
  near["kind_BK"][0, 1] = KINDS.index(ANCHOR)
  near["corrected_BKTA"][0, 0], near["corrected_BKTA"][0, 1] = 0.009, 0.003
  actions, _, say = rules.steer(jnp.asarray(BASE[:1]), near, config, ACTIONS)
  np.testing.assert_allclose(actions, (0.009 + 0.5 * 0.003) / 1.5, atol=1e-6)
  weight = np.exp(-((0.2 / config.tau) ** 2) / 2)
  np.testing.assert_allclose(say, [[weight, weight / 2]], rtol=1e-6)


def test_a_record_without_trust_votes_for_the_base():
  config = rules.preset("mean", regularization=0.0)
  near = neighbours([[0.0, 0.0]], 0.01)
  near["trust_BK"][0] = 0.5, 0.0
  actions, used, say = rules.steer(jnp.zeros((1, 16, 5)), near, config, ACTIONS)
  np.testing.assert_allclose(np.asarray(actions)[0, :, 1].sum(), 0.01 * 0.25, rtol=1e-5)
  assert used[0] == 1 and say.tolist() == [[0.5, 0.0]]
  near["trust_BK"][...] = 0
  actions, used, _ = rules.steer(jnp.asarray(BASE[:1]), near, config, ACTIONS)
  np.testing.assert_array_equal(actions, BASE[:1])


def test_repulsion_leads_away_from_near_failures_only():
  still, failed = jnp.zeros((1, 16, 5)), neighbours([[0.0]])
  failed["kind_BK"][...] = KINDS.index(FAILURE)
  failed["corrected_BKTA"][0, 0, 0, 1] = -0.01  # its path lies 1 cm to the side
  config = rules.preset("repulsion", regularization=0.5)
  actions, used, _ = rules.steer(still, failed, config, ACTIONS)
  # 1 cm apart halves the weight: 0.5 * 0.01 / (0.5 + 0.5).
  np.testing.assert_allclose(np.asarray(actions)[0, :, 1].sum(), 0.005, rtol=1e-5)
  assert used[0] == 1
  repeated = neighbours([[0.0]]) | {"kind_BK": failed["kind_BK"]}
  np.testing.assert_array_equal(rules.steer(still, repeated, config, ACTIONS)[0], still)


@pytest.mark.parametrize("method", ["residual", "blend"])
def test_what_failed_is_not_imitated(method):
  failed = neighbours([[0.0]], 0.02)
  failed["kind_BK"][...] = KINDS.index(FAILURE)
  actions, _, _ = rules.steer(jnp.zeros((1, 16, 5)), failed, rules.preset("residual", method=method), ACTIONS)
  np.testing.assert_array_equal(actions, 0)


def test_guidance_ends_at_the_pull_between_the_flows_end_and_the_target():
  flow = straight_flow(jnp.zeros((1, 16, 5)))
  near = neighbours([[0.0]], 0.01)
  config = rules.preset("guidance", regularization=0.0, pull=0.75)
  actions, _, _ = rules.steer(jnp.zeros((1, 16, 5)), near, config, ACTIONS, flow=flow)
  np.testing.assert_allclose(np.asarray(actions)[0, :, 1].sum(), 0.0075, rtol=1e-4)


def recorded_flow(start=0.0):
  """Returns a flow of 4 steps that stands still, and what was asked of it."""
  calls = []

  def run(x_BTA, **steps):
    calls.append((steps, x_BTA))
    return x_BTA

  double, halve = (lambda chunk: 2 * chunk), (lambda chunk: chunk / 2)
  return Ode(run, jnp.full((1, 16, 5), start), 4, double, halve), calls


def test_a_warm_start_begins_on_the_way_from_the_noise_to_the_chunk():
  flow, calls = recorded_flow(start=1.0)
  near = neighbours([[0.0]])
  near["corrected_BKTA"][...] = 0.01
  config = rules.preset("warm_start", flow_time=0.26)
  actions, _, _ = rules.steer(jnp.zeros((1, 16, 5)), near, config, ACTIONS, flow=flow)
  # The step nearest to 0.26 begins at 1/4; the flow's chunks are twice the robot's.
  assert [steps for steps, _ in calls] == [{"first": 3}]
  np.testing.assert_allclose(calls[0][1], 0.25 * 1.0 + 0.75 * 0.02, rtol=1e-6)
  np.testing.assert_allclose(actions, calls[0][1] / 2)


def test_an_injection_moves_the_flow_by_the_surest_neighbours_weight():
  flow, calls = recorded_flow(start=1.0)
  config = rules.preset("injection", flow_time=0.5)
  near = neighbours([[config.tau]])
  near["kind_BK"][...] = KINDS.index(ANCHOR)
  near["corrected_BKTA"][...] = 0.01
  rules.steer(jnp.zeros((1, 16, 5)), near, config, ACTIONS, flow=flow)
  assert [steps for steps, _ in calls] == [{"last": 2}, {"first": 2}]
  share = np.exp(-0.5)
  np.testing.assert_allclose(calls[1][1], (1 - share) * 1.0 + share * (0.5 + 0.5 * 0.02), rtol=1e-6)


def test_the_best_candidate_is_near_to_what_worked_and_far_from_what_failed():
  candidates = np.zeros((3, 1, 16, 5), np.float32)
  candidates[1, 0, 0, 1], candidates[2, 0, 0, 1] = 0.01, -0.01
  near = neighbours([[0.0, 0.0]])
  near["kind_BK"][0] = KINDS.index(ANCHOR), KINDS.index(FAILURE)
  near["corrected_BKTA"][0, :, 0, 1] = 0.01, -0.01
  value = np.asarray(targets.values(jnp.asarray(candidates), near, np.ones((1, 2), np.float32), ACTIONS))
  # Nearness of paths 0, 1 and 2 cm apart: 1, 1/2, 1/3.
  np.testing.assert_allclose(value[:, 0], [0.5 - 0.5, 1 - 1 / 3, 1 / 3 - 1], atol=1e-5)


def test_best_of_n_takes_the_base_unless_a_draw_is_better():
  base = jnp.zeros((1, 16, 5))
  at_base, elsewhere = neighbours([[0.0]]), neighbours([[0.0]])
  flow, _ = recorded_flow()
  config = rules.preset("best_of_n", draws=3)
  np.testing.assert_array_equal(rules.steer(base, at_base, config, ACTIONS, flow=flow)[0], base)
  drawn = jax.random.normal(jax.random.key(config.seed), (2, 16, 5))
  elsewhere["corrected_BKTA"][0, 0] = drawn[1] / 2
  chosen = rules.steer(base, elsewhere, config, ACTIONS, flow=flow)[0]
  np.testing.assert_allclose(chosen[0], drawn[1] / 2, rtol=1e-6)


def test_wrong_names_list_the_valid_ones():
  with pytest.raises(Pi0RagError, match="residual, residual_dagger"):
    rules.preset("resdual")
  with pytest.raises(Pi0RagError, match="alpha"):
    rules.preset("residual", alfa=1)
  with pytest.raises(Pi0RagError, match="blend, contrast, noise, noise_network, repulsion, residual, residual_network"):
    rules.preset("residual", method="sum")
  with pytest.raises(Pi0RagError, match="after, best_of_n, early, injected, pulled, restarted, warm_started"):
    rules.preset("residual", flow="around")
  with pytest.raises(Pi0RagError, match="allowed: correction, anchor, failure"):
    rules.preset("residual", kinds=("anchors",))
  with pytest.raises(Pi0RagError, match="flow_time is 0 and draws 16"):
    rules.preset("warm_start", flow_time=0)
  with pytest.raises(Pi0RagError, match="method 'noise' with flow 'after': noise is asked for by noise and"):
    rules.preset("noise_memory", flow="after")
  with pytest.raises(Pi0RagError, match="method 'blend' with flow 'restarted'"):
    rules.preset("warm_start", flow="restarted")
  with pytest.raises(Pi0RagError, match="bound is -1"):
    rules.preset("traceflow", bound=-1)


def test_retrieved_noise_is_mixed_with_the_flows_own_start():
  config = rules.preset("noise_memory", regularization=0.25, mode_width=np.inf)
  flow, calls = recorded_flow(start=1.0)
  near = fitted(neighbours([[0.0, config.tau]]), config)
  near["noise_BKTX"][0, 1] = -0.5
  rules.steer(jnp.zeros((1, 16, 5)), near, config, ACTIONS, flow=flow)
  weight = np.exp(-0.5)
  np.testing.assert_allclose(calls[0][1], 1.0 + 0.5 * (1 - weight) / (1 + weight + 0.25), rtol=1e-5)


def test_noise_of_records_that_contradict_each_other_is_not_averaged():
  near = fitted(neighbours([[0.0, 0.0, 0.0]], 0.03), rules.preset("noise_memory"))
  near["corrected_BKTA"][0, 2, 0, 1] = -0.03
  near["noise_BKTX"][0, 2] = -5.0
  noise = targets.noise(jnp.zeros((1, 16, 5)), near, jnp.ones((1, 3)), rules.preset("noise_memory"), ACTIONS)
  np.testing.assert_allclose(noise, 0.5, atol=1e-3)


def test_early_guidance_is_bounded_and_leaves_the_rest_to_the_policy():
  flow = straight_flow(jnp.zeros((1, 16, 5)))
  calls = []
  spied = dataclasses.replace(flow, run=lambda x, **steps: calls.append((steps, x)) or flow.run(x, **steps))
  near = neighbours([[0.0]])
  near["kind_BK"][...] = KINDS.index(ANCHOR)
  near["corrected_BKTA"][...] = 9.0
  config = rules.preset("traceflow", bound=0.25)
  rules.steer(jnp.zeros((1, 16, 5)), near, config, ACTIONS, flow=spied)
  (early, _), (late, x_BTA) = calls
  assert early.keys() == {"last", "correct"} and early["last"] == 4 and late == {"first": 4}
  # Halfway from the noise, of which there is none, to a clean chunk that is moved by the bound.
  assert 0 < np.abs(x_BTA).max() <= 0.25 / 2 + 1e-6


def test_what_worked_attracts_and_what_failed_repels():
  near, config = neighbours([[0.0, 0.0]]), rules.preset("traceflow", regularization=0.0)
  near["kind_BK"][0] = KINDS.index(ANCHOR), KINDS.index(FAILURE)
  near["corrected_BKTA"][0, :, 0, 1] = 0.01, -0.01  # paths 1 cm to either side
  moved = lambda weights: np.asarray(targets.contrast(  # noqa: E731
    jnp.zeros((1, 16, 5)), near, jnp.asarray([weights]), config, ACTIONS))[0, :, 1].sum()
  found = [moved(weights) for weights in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0))]
  np.testing.assert_allclose(found, [0.01, 0.005, 0.0075], rtol=1e-5)


def test_a_residual_network_moves_the_path_by_what_it_foresees():
  near, config = fitted(neighbours([[5.0]]), rules.preset("residual_dagger")), rules.preset("residual_dagger")
  wanted_TA = np.zeros(BASE.shape[1:], np.float32)
  wanted_TA[:, 1] = np.linspace(0, 0.02, 16)
  near["network"] = {**near["network"], "bias_2": np.asarray(paths.scaled(wanted_TA, ACTIONS)).ravel(),
                     "kernel_2": np.zeros_like(near["network"]["kernel_2"])}
  actions, used, _ = rules.steer(jnp.zeros((1, 16, 5)), near, config, ACTIONS)
  np.testing.assert_allclose(paths.to_path(np.asarray(actions), ACTIONS)[0, :, :4], wanted_TA[:, :4], atol=1e-6)
  assert used[0] == 1
  # The other preset abstains, five units away.
  actions, used, _ = rules.steer(jnp.zeros((1, 16, 5)), near, rules.preset("residual_dagger_in_range"), ACTIONS)
  np.testing.assert_array_equal(actions, 0)
  assert used[0] == 0


@pytest.mark.parametrize("method", ["residual", "blend"])
def test_joints_are_steered_to_the_mean_around_the_heaviest_vote(method):
  """Chunks that are paths take other sums than those that integrate; here by hand, with a joint that costs nothing."""
  rng, cost_A = np.random.default_rng(2), np.array([3.0, 1.0, 0.0])
  space = ActionSpace((False,) * 3, tuple(cost_A), (-3.0,) * 3, (3.0,) * 3)
  base_TA, corrected_KTA = 0.1 * rng.standard_normal((4, 3)), 0.1 * rng.standard_normal((6, 4, 3))
  own_KTA = base_TA + 0.1 * rng.standard_normal((6, 4, 3))
  config = rules.preset("residual", method=method, mode_width=0.2)
  distance_K, trust_K = rng.uniform(0, 1, 6), rng.uniform(0.5, 1, 6)
  near = {"distance_BK": distance_K[None], "trust_BK": trust_K[None], "mask_BK": np.ones((1, 6), bool),
          "kind_BK": np.full((1, 6), KINDS.index(CORRECTION), np.int8),
          "base_BKTA": own_KTA[None], "corrected_BKTA": corrected_KTA[None]}
  actions, _, _ = rules.steer(jnp.asarray(base_TA[None], jnp.float32), near, config, space)

  plan_K = np.square((own_KTA - base_TA) * cost_A).sum(axis=-1).mean(axis=-1)
  weight_K = np.exp(-np.square(distance_K / config.tau) / 2 - plan_K / (2 * config.plan_tau**2))
  votes_NTA = np.concatenate([corrected_KTA - (own_KTA if method == "residual" else base_TA), np.zeros((1, 4, 3))])
  weight_N = np.append(weight_K * trust_K, config.regularization + (weight_K * (1 - trust_K)).sum())
  apart_NN = np.square((votes_NTA[:, None] - votes_NTA) * cost_A).sum(axis=-1).mean(axis=-1)
  near_NN = np.exp(-apart_NN / (2 * config.mode_width**2))
  weight_N *= near_NN[(near_NN @ weight_N).argmax()]
  wanted_TA = base_TA + np.einsum("N,NTA->TA", weight_N, votes_NTA) / weight_N.sum()
  np.testing.assert_allclose(actions[0], wanted_TA, atol=1e-5)
