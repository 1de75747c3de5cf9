"""Every robot's dictionaries, against openpi's records."""

import re

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi.config import DataConfig
from pi0rag_jax.robots import aloha
from pi0rag_jax.robots.robot import ROBOTS, robot_transforms
from pi0rag_jax.robots.transforms import compose

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
  case, group = recorded["policies"][name], robot_transforms(DATA[data], family)
  before = {key: np.array(value) for key, value in case["input"].items() if isinstance(value, np.ndarray)}
  assert_same(compose(group.inputs if "_in_" in name else group.outputs)(case["input"]), case["output"])
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
    compose(robot_transforms(DATA[robot], "pi0").inputs)(observation)


def test_openpis_error_of_an_unknown_camera(recorded):
  """openpi's text lists the cameras that are allowed, then those that it was given; ours has the odd one and them."""
  allowed, given = (set(re.findall(r"'(\w+)'", part)) for part in re.findall(
    r"\(.*?\)", recorded["policies_errors"]["aloha_unknown_camera"]))
  with pytest.raises(Pi0RagError) as caught:
    compose(robot_transforms(DATA["aloha"], "pi0").inputs)(aloha_observation(images=dict.fromkeys(given)))
  assert f"unknown camera of ALOHA '{(given - allowed).pop()}'" in str(caught.value)
  assert f"Valid names: {', '.join(sorted(allowed))}" in str(caught.value)


def test_an_unknown_robot_names_the_known_ones():
  with pytest.raises(Pi0RagError, match=r"unknown robot 'aloah'. Did you mean 'aloha'"):
    robot_transforms(DataConfig(robot="aloah"), "pi0")
  assert set(ROBOTS) == {"aloha", "droid", "libero", "fake"}
