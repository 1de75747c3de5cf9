"""Every robot's dictionaries, against openpi's records."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from configs import my_robot
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.openpi.named_configs import CONFIGS
from pi0rag_jax.robots import aloha
from pi0rag_jax.robots.normalize import NormStats
from pi0rag_jax.robots.registry import ROBOTS, make_robot
from pi0rag_jax.robots.robot import ActionSpace, Robot
from pi0rag_jax.robots.transforms import TransformGroup

# Recorded case -> configuration and model family.
CASES = {
  "aloha_in_adaptTrue": ("aloha", "pi0"), "aloha_out_adaptTrue": ("aloha", "pi0"),
  "aloha_in_adaptFalse": ("aloha_raw", "pi0"), "aloha_out_adaptFalse": ("aloha_raw", "pi0"),
  "aloha_in_float_images": ("aloha_raw", "pi0"),
  "droid_in_pi0": ("droid", "pi0"), "droid_in_pi05": ("droid", "pi05"), "droid_in_pi0_fast": ("droid", "pi0_fast"),
  "droid_in_scalar_gripper_float_chw": ("droid", "pi0"), "droid_out": ("droid", "pi0"),
  "libero_in_pi0": ("libero", "pi0"), "libero_in_pi05": ("libero", "pi05"),
  "libero_in_pi0_fast": ("libero", "pi0_fast"), "libero_out": ("libero", "pi0"),
}
DATA = {"aloha": DataConfig(robot="aloha"), "aloha_raw": DataConfig(robot="aloha", adapt_to_pi=False),
        "droid": DataConfig(robot="droid"), "libero": DataConfig(robot="libero")}


def assert_same(found, wanted):
  if isinstance(wanted, dict):
    assert found.keys() == wanted.keys()
    for key in wanted:
      assert_same(found[key], wanted[key])
  elif isinstance(wanted, str):
    assert found == wanted
  else:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 if wanted.dtype.kind == "f" else 0)
    assert np.asarray(found).dtype == wanted.dtype


def test_every_recorded_case_is_listed(recorded):
  assert CASES.keys() == recorded["policies"].keys()


@pytest.mark.parametrize("name", CASES)
def test_recorded_case(recorded, name):
  data, family = CASES[name]
  case, robot = recorded["policies"][name], make_robot(DATA[data], family)
  before = {key: np.array(value) for key, value in case["input"].items() if isinstance(value, np.ndarray)}
  assert_same((robot.inputs if "_in_" in name else robot.outputs)(case["input"]), case["output"])
  for key, value in before.items():
    np.testing.assert_array_equal(case["input"][key], value)


def test_aloha_actions_come_back():
  actions_TA = np.random.default_rng(0).normal(size=(5, 14))
  np.testing.assert_allclose(aloha.actions_from_pi(aloha.actions_to_pi(actions_TA)), actions_TA, atol=1e-12)


def aloha_observation(**changes):
  return {"state": np.zeros(14), "images": {"cam_high": np.zeros((3, 8, 8), np.uint8)}, **changes}


def libero_observation(**changes):
  image = np.zeros((8, 8, 3), np.uint8)
  return {"observation/state": np.zeros(8), "observation/image": image, "observation/wrist_image": image, **changes}


@pytest.mark.parametrize(("robot", "observation", "message"), [
  ("aloha", aloha_observation(state=np.zeros(13)), "state has 13 numbers, the robot has 14"),
  ("aloha", aloha_observation(images={"cam_hihg": 0}), "unknown camera of ALOHA 'cam_hihg'. Did you mean 'cam_high'"),
  ("aloha", aloha_observation(images={"cam_high": np.zeros((8, 8, 3), np.uint8)}), r"ALOHA's cameras give \[3, H, W\]"),
  ("libero", libero_observation(**{"observation/state": np.full(8, np.nan)}), "observation/state has NaN"),
  ("libero", libero_observation(**{"observation/image": np.full((8, 8, 3), 255.0)}), "observation/image: float image"),
  ("libero", libero_observation(**{"observation/state": np.zeros((1, 8))}), r"has shape \(1, 8\); allowed: \(8,\)"),
  ("libero", libero_observation(**{"observation/state": ["a"] * 8}), r"state is <U1\[8\]; allowed: numbers"),
  ("libero", libero_observation(**{"observation/image": np.zeros((0, 8, 3), np.uint8)}), r"has shape \(0, 8, 3\)"),
  ("droid", {"prompt": "go"}, "the observation has no 'observation/exterior_image_1_left'; there are: prompt"),
  ("aloha", {"state": np.zeros(14)}, "the observation has no 'images'; there are: state"),
  ("aloha", aloha_observation(images=np.zeros(3)), "images is ndarray; allowed: a dictionary"),
  ("aloha", aloha_observation(images={"cam_left_wrist": 0}), "no 'cam_high'; there are: cam_left_wrist"),
  ("aloha", aloha_observation(actions=np.zeros(14)), r"actions has shape \(14,\); allowed: \(T, 14\), one row per"),
])
def test_bad_observations_say_what_is_allowed(robot, observation, message):
  with pytest.raises(Pi0RagError, match=message):
    make_robot(DATA[robot], "pi0").observe(observation)


def test_openpis_error_of_an_unknown_camera(recorded):
  """openpi's text lists the cameras that are allowed, then those that it was given; ours has the odd one and them."""
  allowed, given = (set(re.findall(r"'(\w+)'", part)) for part in re.findall(
    r"\(.*?\)", recorded["policies_errors"]["aloha_unknown_camera"]))
  with pytest.raises(Pi0RagError) as caught:
    make_robot(DATA["aloha"], "pi0").observe(aloha_observation(images=dict.fromkeys(given)))
  assert f"unknown camera of ALOHA '{(given - allowed).pop()}'" in str(caught.value)
  assert f"Valid names: {', '.join(sorted(allowed))}" in str(caught.value)


def test_an_unknown_robot_names_the_known_ones():
  with pytest.raises(Pi0RagError, match=r"unknown robot 'aloah'. Did you mean 'aloha'"):
    make_robot(DataConfig(robot="aloah"), "pi0")
  assert {"aloha", "droid", "libero", "panda", "fake"} <= set(ROBOTS)


CONFIGURED = {name: config for name, config in CONFIGS.items() if config.data.robot != "fake"}


@pytest.mark.parametrize("name", CONFIGURED)
def test_every_configurations_robot_knows_its_actions(name):
  """Its example fits, and its actions are the model's entries, there and back, as its own functions convert them."""
  config = CONFIGURED[name]
  robot, width = make_robot(config.data, config.model.family), config.model.action_dim
  seen = robot.observe(robot.example())
  assert seen["prompt"] and seen["image"] and np.isfinite(seen["state"]).all()
  rng = np.random.default_rng(0)
  actions_TX, state_P = rng.normal(size=(5, width)), rng.normal(size=width)
  found, wanted_TA = robot.action_map(width), robot.to_robot(actions_TX, state_P)
  assert wanted_TA.shape == (5, robot.actions.dim)
  np.testing.assert_allclose(found.to_robot(actions_TX, state_P), wanted_TA, atol=1e-9)
  np.testing.assert_allclose(found.to_model(wanted_TA, state_P), actions_TX[:, : robot.actions.dim], atol=1e-9)


def test_relative_actions_and_deltas_are_told_apart():
  space = lambda name: make_robot(CONFIGS[name].data, "pi0").actions  # noqa: E731
  assert not any(space("pi0_aloha_sim").integrates) and space("pi0_aloha_sim").dim == 14
  assert space("pi0_droid").integrates == (*[True] * 7, False)  # joint velocities
  assert not any(space("pi05_droid_jointpos_polaris").integrates)
  assert space("pi0_libero").together == ((0, 1, 2), (3, 4, 5))


def test_a_map_places_entries_where_the_model_has_them():
  swapped = Robot("mine", dict, lambda data: {"actions": 2 * data["actions"][:, [3, 1]] + 1}).action_map(5)
  actions_TX = np.arange(10.0).reshape(2, 5)
  np.testing.assert_allclose(swapped.to_robot(actions_TX), 2 * actions_TX[:, [3, 1]] + 1)
  np.testing.assert_allclose(swapped.to_model(swapped.to_robot(actions_TX)), actions_TX[:, :4] * [0, 1, 0, 1])
  np.testing.assert_allclose(swapped.to_robot(jnp.asarray(actions_TX)), 2 * actions_TX[:, [3, 1]] + 1)


def test_a_robot_that_mixes_its_entries_has_no_map():
  mixed = Robot("mine", dict, lambda data: {"actions": data["actions"][:, :1] + data["actions"][:, 1:2]})
  squared = Robot("mine", dict, lambda data: {"actions": data["actions"][:, :2] ** 2})
  for robot in (mixed, squared):
    with pytest.raises(Pi0RagError, match=r"the robot .mine. mixes entries of its actions"):
      robot.action_map(4)


def test_a_robot_of_your_own_may_be_its_transforms_alone():
  group = TransformGroup((lambda data: {**data, "seen": True},), (lambda data: {"actions": data["actions"][:, :2]},))
  robot = make_robot(DataConfig(robot=lambda data, family: group, delta_mask=(True, False)), "pi0")
  assert robot.actions is None and robot.relative == (True, False)
  assert robot.observe({"state": np.ones(2), "actions": np.ones((1, 2))})["actions"].tolist() == [[0, 1]]
  assert my_robot.robot(DataConfig(robot="mine"), "pi05").actions.dim == 7
  with pytest.raises(Pi0RagError, match="robot\\(\\) returns a dict; allowed: a Robot"):
    make_robot(DataConfig(robot=lambda data, family: {}), "pi0")


def test_a_robot_that_declares_nothing_is_measured_by_its_spread():
  space = ActionSpace.of_stats(NormStats(np.zeros(3), np.array([0.5, 2.0, 0.0])), (True, False, False))
  assert space.cost == (2.0, 0.5, 1000.0) and space.integrates == (True, False, False)
  assert space.low == (-np.inf,) * 3 and space.high == (np.inf,) * 3
  plain = space.to_dict()
  assert plain["low"] == [None] * 3 and json.loads(json.dumps(plain, allow_nan=False)) == plain
  assert space.fingerprint != ActionSpace.of_stats(NormStats(np.zeros(3), np.ones(3))).fingerprint


@pytest.mark.parametrize(("changes", "message"), [
  ({"cost": (1.0,)}, r"cost is \(1\.0,\), allowed: 2 numbers, as many as integrates has"),
  ({"cost": (1.0, -1.0)}, "allowed: finite numbers of 0 or more"),
  ({"low": (2.0, 0.0)}, r"low \(2\.0, 0\.0\) exceeds high"),
  ({"together": ((0, 2),)}, "allowed: groups of different entries below 2"),
  ({"together": ((0, 1), (1,))}, "allowed: groups of different entries below 2"),
  ({"reach": (1.0,)}, "reach is"),
])
def test_wrong_action_spaces_say_what_is_allowed(changes, message):
  good = {"integrates": (True, False), "cost": (1.0, 1.0), "low": (0.0, 0.0), "high": (1.0, 1.0)}
  with pytest.raises(Pi0RagError, match=message):
    ActionSpace(**{**good, **changes})
