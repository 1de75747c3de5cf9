"""Tests of the conditions: the registry, and that each really changes what it says."""

import dataclasses

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.sim.conditions import Calibration, Condition, condition_names, get_condition
from pi0rag_jax.sim.env import PandaEnv


def _env(condition, **changes) -> PandaEnv:
  env = PandaEnv(condition=dataclasses.replace(get_condition(condition), **changes))
  env.reset(seed=4)
  return env


def test_unknown_names_list_the_valid_ones():
  with pytest.raises(Pi0RagError, match=r"unknown condition 'tool_ofset'.*'tool_offset'.*nominal"):
    get_condition("tool_ofset")
  with pytest.raises(Pi0RagError, match=r"unknown object region 'left'.*held_out"):
    Condition("x", "y", object_region="left")


def test_a_condition_object_is_its_own_lookup():
  condition = dataclasses.replace(get_condition("tool_offset"), tool_offset_m=(0.0, 0.01, 0.0))
  assert get_condition(condition) is condition
  assert set(condition_names()) >= {"nominal", "tool_offset", "camera_shift", "slippery_heavy", "unseen_region"}


@pytest.mark.parametrize("name", condition_names())
def test_only_nominal_equals_nominal(name):
  same = dataclasses.asdict(get_condition(name)) | {"name": "", "description": ""}
  nominal = dataclasses.asdict(get_condition("nominal")) | {"name": "", "description": ""}
  assert (same == nominal) == (name == "nominal")


def test_tool_offset_moves_the_fingers_but_not_the_believed_tool():
  env = _env("tool_offset", tool_offset_m=(0.005, 0.018, 0.003))
  believed, yaw = env.physics.tool_pose()
  real, _ = env.physics.fingertip_pose()
  # The hand points down: its y axis is (sin yaw, -cos yaw) on the table.
  x, y = np.array([np.cos(yaw), np.sin(yaw)]), np.array([np.sin(yaw), -np.cos(yaw)])
  np.testing.assert_allclose(real[:2] - believed[:2], 0.005 * x + 0.018 * y, atol=1e-4)
  np.testing.assert_allclose(real[2] - believed[2], -0.003, atol=1e-4)
  np.testing.assert_allclose(env.observe()["state"][:3], believed, atol=1e-6)


@pytest.mark.parametrize("camera", ["base_0_rgb", "left_wrist_0_rgb"])
def test_camera_shift_moves_the_picture_by_some_pixels(camera):
  def centre(env):
    picture = env.observe()["image"][camera].astype(int)
    blue = (picture[..., 2] > 100) & (picture[..., 0] < 60) & (picture[..., 1] < 100)
    return np.argwhere(blue).mean(axis=0)

  nominal, shifted = (PandaEnv(condition=name) for name in ("nominal", "camera_shift"))
  for env in (nominal, shifted):
    env.reset(seed=3)
  assert nominal.layout == shifted.layout
  assert 0.5 < np.linalg.norm(centre(nominal) - centre(shifted)) < 6
  assert np.array_equal(nominal.observe()["state"], shifted.observe()["state"])


def test_slippery_heavy_scales_mass_and_friction():
  nominal, env = _env("nominal"), _env("slippery_heavy", object_mass_scale=4.0, friction_scale=0.25)
  def masses(e):
    return e.physics.model.body("cube_target").mass[0], e.physics.model.body("cube_target").inertia[0]

  np.testing.assert_allclose(masses(env), 4 * np.array(masses(nominal)))
  for geom in ("pad_left", "pad_right", "cube_target_0"):
    ratio = env.physics.model.geom(geom).friction[0] / nominal.physics.model.geom(geom).friction[0]
    assert ratio == pytest.approx(0.25), geom


def test_unseen_region_holds_exactly_what_seen_leaves_out():
  env = PandaEnv(condition="unseen_region", render_images=False)
  config = env.task.config
  for seed in range(20):
    env.reset(seed=seed)
    x, y, _ = env.layout.cubes[0]
    assert config.held_out_low[0] <= x <= config.held_out_high[0]
    assert config.held_out_low[1] <= y <= config.held_out_high[1]
    env.reset(seed=seed, options={"object_region": "seen"})
    assert env.layout.cubes[0][1] < config.held_out_low[1]


def test_calibration_displaces_the_real_tool_inside_its_region_only():
  calibration = Calibration(offset_m=(0.0, 0.02, 0.0), center_m=(0.45, -0.1), radius_m=0.12)
  env = _env("calibration_region", calibration=calibration)
  for xy, offset in (((0.45, -0.1), 0.02), ((0.55, 0.15), 0.0)):
    env.controller.reset((*xy, 0.15, 0.0))
    env.physics.refresh()
    np.testing.assert_allclose(env.physics.tool_pose()[0], (xy[0], xy[1] + offset, 0.15), atol=3e-4)
    np.testing.assert_allclose(env.observe()["state"][:3], (*xy, 0.15), atol=3e-4)


def test_believed_position_inverts_the_displacement():
  env = _env("calibration_region")
  rng = np.random.default_rng(0)
  for x, y in rng.uniform((0.35, -0.3), (0.65, 0.2), (50, 2)):
    real, _ = env.controller.nominal_pose((x, y, 0.1, 0.0))
    np.testing.assert_allclose(env.controller.believed_position(real), (x, y, 0.1), atol=2e-4)


def test_a_calibration_that_cannot_be_inverted_is_refused():
  with pytest.raises(Pi0RagError, match="fades too steeply"):
    Calibration(offset_m=(0.05, 0.0, 0.0), radius_m=0.1)


def test_conditions_apply_at_reset():
  env = PandaEnv(render_images=False)
  env.reset(seed=0)
  env.reset(seed=0, options={"condition": "tool_offset"})
  assert env.condition.name == "tool_offset"
  assert np.linalg.norm(env.physics.fingertip_pose()[0] - env.physics.tool_pose()[0]) > 0.005


def test_actuator_delay_moves_the_arm_late_and_survives_a_snapshot():
  rise = np.array([[0.0, 0.0, 0.01, 0.0, 0.0]] * 6, np.float32)

  def heights(env, actions):
    return [env.advance(action[None])[-1] and env.physics.tool_pose()[0][2] for action in actions]

  prompt, late = (_env("nominal", actuator_delay_ticks=ticks) for ticks in (0, 3))
  on_time, delayed = heights(prompt, rise), heights(late, rise)
  np.testing.assert_allclose(np.diff([on_time[0], *delayed[3:]])[1:], np.diff(on_time[:3]), atol=5e-4)
  assert delayed[2] < on_time[0]
  snapshot = late.snapshot()
  after = heights(late, rise)
  late.restore(snapshot)
  assert heights(late, rise) == after
  with pytest.raises(Pi0RagError, match=r"actuator_delay_ticks is -1, allowed: 0\.\.20"):
    Condition("x", "y", actuator_delay_ticks=-1)


def test_light_and_table_change_the_picture_and_nothing_else():
  nominal = _env("nominal")
  dim = _env("nominal", light_rgb=(0.5, 0.25, 1.0))
  table = _env("nominal", table_rgb=(0.1, 0.5, 0.9))
  before, after = (env.observe()["image"]["base_0_rgb"].astype(float) for env in (nominal, dim))
  assert np.abs(after - before * (0.5, 0.25, 1.0)).max() <= 1.0
  other = table.observe()["image"]["base_0_rgb"]
  assert 0.2 < (other != before).any(axis=-1).mean() < 0.95  # what stands on the table keeps its colour
  for env in (dim, table):
    assert np.array_equal(env.observe()["state"], nominal.observe()["state"])
