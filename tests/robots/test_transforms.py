"""The steps between a robot's dictionaries and a model's, against openpi's records."""

import warnings

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots import transforms
from pi0rag_jax.robots.normalize import NormStats

STATS = {"state": NormStats(np.zeros(2), np.ones(2), -np.ones(2), np.ones(2)),
         "actions": NormStats(np.ones(2), np.ones(2), -np.ones(2), np.ones(2))}


def add(name):
  return lambda data: {**data, "trace": [*data.get("trace", []), name]}


def test_groups_grow_towards_the_model():
  group = transforms.TransformGroup((add("robot"),), (add("to robot"),)).push(
    inputs=[add("model")], outputs=[add("from model")])
  assert transforms.compose(group.inputs)({})["trace"] == ["robot", "model"]
  assert transforms.compose(group.outputs)({})["trace"] == ["from model", "to robot"]


def test_recorded_repack(recorded):
  data = {"observation": {"images": {"top": 1}, "state": 2}, "index": 3}
  repack = transforms.Repack({"images": {"cam_high": "observation/images/top"}, "state": "observation/state",
                              "n": "index"})
  assert repack(data) == recorded["repack"]


def test_repack_names_the_missing_key():
  with pytest.raises(Pi0RagError, match=r"unknown key of the data 'stat'. Did you mean 'state'"):
    transforms.Repack({"state": "stat"})({"state": 1})


def test_recorded_default_prompt(recorded):
  inject, case = transforms.InjectDefaultPrompt("x"), recorded["inject_default_prompt"]
  assert inject({})["prompt"] == case["absent"] and inject({"prompt": "y"})["prompt"] == case["present"]
  assert transforms.InjectDefaultPrompt(None)({}) == {}


@pytest.mark.parametrize("prompt", ["go", b"go", np.array("go")])
def test_prompts_are_read_in_every_form(prompt):
  assert transforms.read_prompt({"prompt": prompt}) == "go"


def test_a_missing_prompt_says_where_to_give_one():
  with pytest.raises(Pi0RagError, match=r"no 'prompt' and the configuration no default_prompt"):
    transforms.read_prompt({})
  with pytest.raises(Pi0RagError, match=r"prompt is int; allowed: one string"):
    transforms.read_prompt({"prompt": 3})


def test_recorded_deltas(recorded):
  for case in recorded["delta_absolute"]:
    data = {"state": case["state"], "actions": case["actions"]}
    kept = case["actions"].copy()
    delta = transforms.DeltaActions(case["mask"])(data)
    np.testing.assert_array_equal(delta["actions"], case["delta"])
    np.testing.assert_array_equal(transforms.AbsoluteActions(case["mask"])(data)["actions"], case["absolute"])
    np.testing.assert_array_equal(data["actions"], kept)
    np.testing.assert_allclose(transforms.AbsoluteActions(case["mask"])(delta)["actions"], kept, atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_absolute_actions_undo_deltas(seed):
  rng = np.random.default_rng(seed)
  state_dim, action_dim, steps = rng.integers(1, 16, 3)
  mask = rng.random(rng.integers(0, min(state_dim, action_dim) + 1)) < 0.5
  data = {"state": rng.normal(size=state_dim), "actions": rng.normal(size=(steps, action_dim))}
  delta = transforms.DeltaActions(mask)(data)["actions"]
  moved = np.flatnonzero(mask)
  np.testing.assert_array_equal(delta[:, moved], data["actions"][:, moved] - data["state"][moved])
  np.testing.assert_array_equal(np.delete(delta, moved, axis=1), np.delete(data["actions"], moved, axis=1))
  back = transforms.AbsoluteActions(mask)({**data, "actions": delta})["actions"]
  np.testing.assert_allclose(back, data["actions"], atol=1e-12)


def test_deltas_without_mask_or_actions_change_nothing():
  data = {"state": np.ones(2), "actions": np.ones((3, 2))}
  assert transforms.DeltaActions(None)(data) is data
  assert transforms.DeltaActions((True,))({"state": np.ones(2)}).keys() == {"state"}


def test_a_mask_longer_than_the_actions_is_refused():
  with pytest.raises(Pi0RagError, match=r"mask of delta actions has 3 entries, the state 2 and the actions 4"):
    transforms.DeltaActions((True,) * 3)({"state": np.ones(2), "actions": np.ones((1, 4))})


def test_recorded_masks(recorded):
  for case in recorded["make_bool_mask"]:
    assert list(transforms.make_bool_mask(*case["args"])) == case["out"]


def test_normalization_skips_what_is_absent_and_unnormalization_does_not():
  assert transforms.Normalize(STATS)({"state": np.ones(2)}).keys() == {"state"}
  with pytest.raises(Pi0RagError, match=r"outputs lack actions; there are state"):
    transforms.Unnormalize(STATS)({"state": np.ones(2)})


def test_a_state_far_out_is_warned_of_once():
  step = transforms.Normalize(STATS, quantile=True)
  with pytest.warns(UserWarning, match=r"dim 1 is -57.3, the statistics have -1 to 1 \(q01, q99\)\): check units"):
    step({"state": np.array([0.5, -57.3])})
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    step({"state": np.array([0.5, 57.3])})
    transforms.Normalize(STATS, quantile=True)({"state": np.array([0.5, -3.0])})


def test_a_warning_names_mean_and_deviation_where_there_are_no_quantiles():
  stats = {"state": NormStats(np.arange(6.0), np.full(6, 0.5))}
  with pytest.warns(UserWarning, match=r"dim 0 is 99, the statistics have 0 ± 0.5 \(mean, std\); .*; and 2 more\)"):
    transforms.Normalize(stats)({"state": np.full(6, 99.0)})


def test_statistics_of_more_dims_are_cut_or_refused():
  np.testing.assert_array_equal(transforms.Normalize(STATS)({"state": np.ones(1)})["state"].shape, (1,))
  # Padded to the model's dims, as openpi's first ones were.
  transforms.Normalize(STATS, padded_dim=2)({"state": np.ones(1)})
  with pytest.raises(Pi0RagError, match=r"state: array has 1 dims, the norm stats have 2: they belong to another"):
    transforms.Normalize(STATS, padded_dim=32)({"state": np.ones(1)})


def test_normalization_names_the_entry():
  with pytest.raises(Pi0RagError, match=r"state: array has 3 dims, the norm stats have 2"):
    transforms.Normalize(STATS)({"state": np.ones(3)})
