"""What a policy refuses, with what is allowed."""

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import registry
from pi0rag_jax.robots import checks
from pi0rag_jax.robots.checks import CheckEntries
from pi0rag_jax.robots.normalize import NormStats

PICTURE = np.zeros((4, 4, 3), np.uint8)
STATS = NormStats(np.zeros(2), np.ones(2), -np.ones(2), np.ones(2))
Z_SCORES = {"mean": [0.0], "std": [1.0]}


def entries(**changes):
  return {"image": {"front": PICTURE}, "state": np.zeros(3), **changes}


def test_good_entries_pass():
  data = entries(prompt="go")
  assert CheckEntries(("front",))(data) is data
  CheckEntries()(entries(image={"other": PICTURE}, state=[1, 2]))


@pytest.mark.parametrize(("changes", "message"), [
  ({"image": None}, "'image' is missing; allowed: a dictionary of pictures by camera"),
  ({"image": {}}, "'image' is a dictionary of nothing; allowed"),
  ({"image": {"wrist": PICTURE}}, r"no picture of front, there are wrist: .* black picture and masked in 'image_mask'"),
  ({"image": {"front": PICTURE / 255}}, r"the picture of front is float64\[4, 4, 3\]; allowed: uint8\[H, W, 3\]"),
  ({"image": {"front": PICTURE.T}}, r"uint8\[3, 4, 4\]; allowed"),
  ({"image": {"front": PICTURE[None]}}, r"uint8\[1, 4, 4, 3\]; allowed"),
  ({"state": None}, "'state' is missing; allowed: numbers in one dimension"),
  ({"state": np.zeros((1, 3))}, r"'state' is float64\[1, 3\]; allowed"),
  ({"state": np.array([0, np.nan, np.inf])}, "'state' has NaN or infinity at 1, 2"),
])
def test_bad_entries_say_what_is_allowed(changes, message):
  with pytest.raises(Pi0RagError, match=message):
    CheckEntries(("front",))(entries(**changes))


def test_debug_pictures_may_be_floats():
  picture = np.full((4, 4, 3), -1.0, np.float32)
  CheckEntries(floats=True)(entries(image={"front": picture}))
  with pytest.raises(Pi0RagError, match=r"front has values from -2 to -2; allowed: \[-1, 1\], or uint8"):
    CheckEntries(floats=True)(entries(image={"front": 2 * picture}))


def test_statistics_are_read_in_both_forms():
  found = checks.check_stats({"state": STATS, "actions": Z_SCORES}, source="here", quantile=False)
  assert found["state"] is STATS and found["actions"].dim == 1
  with pytest.raises(Pi0RagError, match=r"here: those of actions have no q01 and q99, by which pi0\.5 and pi0-FAST"):
    checks.check_stats({"state": STATS, "actions": Z_SCORES}, source="here", quantile=True)
  with pytest.raises(Pi0RagError, match="here lack those of actions; there are state"):
    checks.check_stats({"state": STATS}, source="here", quantile=False)


def test_statistics_of_actions_are_the_robots_or_padded():
  checks.check_action_stats(STATS, 2, robot="arm", model_dim=32)
  checks.check_action_stats(STATS, 1, robot="arm", model_dim=2)
  with pytest.raises(Pi0RagError, match=r"actions: the robot 'arm' has 8 dims, the norm stats have 2: they belong to"):
    checks.check_action_stats(STATS, 8, robot="arm", model_dim=32)


def test_the_model_is_of_the_configurations_family():
  checks.check_model(registry.model("dummy"), "pi0")
  with pytest.raises(Pi0RagError, match="the configuration is of the family pi05, the model of pi0"):
    checks.check_model(registry.model("dummy"), "pi05")
