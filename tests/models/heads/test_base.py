"""Every head: streaming equals windows, padding, dropout, sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.heads import base, registry

HEADS = sorted(registry.HEADS)
WINDOW = 4
# Heads of the same sizes compile once for all tests.
APPLY, STEP = jax.jit(base.apply, static_argnums=0, static_argnames="train"), jax.jit(base.step, static_argnums=0)


def stream(head, params, features_BWD, state=None):
  """Returns the answers of `step`, stacked along W."""
  state = base.init_state(head, len(features_BWD)) if state is None else state
  outputs = []
  for t in range(features_BWD.shape[1]):
    state, output = STEP(head, params, state, features_BWD[:, t])
    outputs.append(base.to_actions(head.config, output))
  return np.stack(outputs, axis=1)


def window(head, params, features_BWD, mask_BW=None):
  mask_BW = np.ones(features_BWD.shape[:2], bool) if mask_BW is None else mask_BW
  return np.asarray(base.to_actions(head.config, APPLY(head, params, features_BWD, mask_BW)))


@pytest.mark.parametrize("name", HEADS)
def test_a_stream_answers_as_the_window_of_its_last_steps(name, make_head, features_BWD):
  head, params = make_head(name)
  streamed = stream(head, params, features_BWD)
  first = window(head, params, features_BWD[:, :WINDOW])
  assert streamed.shape == (3, 8, 2, 3)
  np.testing.assert_allclose(streamed[:, :WINDOW], first, atol=1e-5)
  for t in range(WINDOW, 8):
    last = window(head, params, features_BWD[:, t - WINDOW + 1 : t + 1])[:, -1]
    np.testing.assert_allclose(streamed[:, t], last, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("front", [True, False])
def test_padding_changes_no_answer_whatever_it_holds(name, front, make_head, features_BWD):
  head, params = make_head(name)
  valid_BWD = features_BWD[:, :2]
  padding = np.full_like(valid_BWD, np.nan)
  padded = np.concatenate([padding, valid_BWD] if front else [valid_BWD, padding], axis=1)
  span = slice(2, 4) if front else slice(0, 2)
  mask_BW = np.zeros((3, WINDOW), bool)
  mask_BW[:, span] = True
  # No answer depends on later steps, see the next test.
  wanted = window(head, params, features_BWD[:, :WINDOW])[:, :2]
  np.testing.assert_allclose(window(head, params, padded, mask_BW)[:, span], wanted, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_no_answer_depends_on_later_steps(name, make_head, features_BWD):
  head, params = make_head(name)
  features = features_BWD[:, :WINDOW].copy()
  before = window(head, params, features)
  features[:, 2:] *= np.linspace(-1, 1, features.shape[-1])
  after = window(head, params, features)
  np.testing.assert_array_equal(after[:, :2], before[:, :2])
  assert not np.allclose(after[:, 2], before[:, 2])


@pytest.mark.parametrize("name", HEADS)
def test_rows_are_reset_one_by_one(name, make_head, features_BWD):
  head, params = make_head(name)
  state = base.init_state(head, 3)
  for t in range(3):
    state, _ = STEP(head, params, state, features_BWD[:, t])
  state = base.reset_rows(head, state, np.array([False, True, False]))
  after = stream(head, params, features_BWD[:, 3:5], state)
  whole, fresh = stream(head, params, features_BWD[:, :5]), stream(head, params, features_BWD[:, 3:5])
  np.testing.assert_allclose(after[[0, 2]], whole[[0, 2], 3:], atol=1e-5)
  np.testing.assert_allclose(after[1], fresh[1], atol=1e-5)


@pytest.mark.parametrize("name", ["lstm", "mlp"])
def test_dropout_acts_only_while_training(name, make_head, features_BWD):
  features_BWD = features_BWD[:, :WINDOW]
  without, params = make_head(name)
  head, _ = make_head(name, dropout=0.5)
  mask_BW = np.ones((3, WINDOW), bool)
  logits = APPLY(head, params, features_BWD, mask_BW).gripper_logits
  np.testing.assert_array_equal(logits, APPLY(without, params, features_BWD, mask_BW).gripper_logits)
  trained = [APPLY(head, params, features_BWD, train=True, rng=jax.random.key(i)).gripper_logits for i in (0, 1)]
  assert not np.allclose(trained[0], logits) and not np.allclose(trained[0], trained[1])
  with pytest.raises(Pi0RagError, match=r"dropout 0.5: give an rng"):
    base.apply(head, params, features_BWD, train=True)


def test_fresh_parameters_answer_near_zero(features_BWD):
  config = registry.head_config("lstm", feature_dim=6, action_dim=3, hidden=8, layers=1, window=4)
  head = registry.make(config)
  params = jax.jit(base.init, static_argnums=0)(head, jax.random.key(0))
  np.testing.assert_array_equal(params["layers_0"]["input"]["bias"], np.repeat([0.0, 1.0, 0.0, 0.0], 8))
  output = APPLY(head, params, features_BWD)
  assert output.motion.shape == (3, 8, 10, 2) and np.abs(output.motion).max() < 0.5


def test_proprioception_passes_the_norm_and_grippers_sit_where_they_belong(make_head, features_BWD):
  head, params = make_head("mlp", feature_dim=4, state_dim=2, gripper_dims=(0,))
  scaled = features_BWD.copy()
  scaled[..., :4] *= 100.0
  np.testing.assert_allclose(window(head, params, scaled), window(head, params, features_BWD), atol=1e-4)
  scaled[..., 4:] *= 100.0
  assert not np.allclose(window(head, params, scaled), window(head, params, features_BWD))
  output = base.HeadOutput(jnp.array([[2.0, 3.0]]), jnp.array([[0.0]]))
  np.testing.assert_allclose(base.to_actions(head.config, output), [[0.5, 2.0, 3.0]])


def test_a_robot_without_a_gripper(make_head, features_BWD):
  head, params = make_head("mlp", gripper_dims=())
  assert window(head, params, features_BWD[:, :4]).shape == (3, 4, 2, 3)


def test_another_backbones_features_are_refused(make_head, features_BWD):
  head, params = make_head("mlp")
  with pytest.raises(Pi0RagError, match="features have 5 entries, the head takes 6 and 0 of proprioception"):
    base.apply(head, params, features_BWD[..., :5])


@pytest.mark.parametrize(("fields", "message"), [
  ({"chunk": 0}, "chunk is 0, it must be at least 1"),
  ({"layers": 0}, "layers is 0, it must be at least 1"),
  ({"dropout": 1.0}, "dropout is 1.0, allowed"),
  ({"regression": "hubert"}, r"unknown regression of a head 'hubert'. Did you mean 'huber'\?"),
  ({"gripper_dims": (3,)}, r"gripper_dims \(3,\) are not distinct entries of 3 actions"),
  ({"gripper_dims": (-1, 2)}, "are not distinct"),
  ({"gripper_dims": (0, 1, 2)}, "at least one must be a motion"),
  ({"history": "windows"}, r"unknown history 'windows'. Did you mean 'window'\?"),
])
def test_impossible_sizes_are_refused(fields, message):
  with pytest.raises(Pi0RagError, match=message):
    registry.head_config("lstm", **{"feature_dim": 6, "action_dim": 3} | fields)
