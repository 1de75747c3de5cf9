import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.heads import losses, registry
from pi0rag_jax.models.heads.base import HeadOutput


def small_config(name="mlp", **fields):
  return registry.head_config(name, **{"feature_dim": 6, "action_dim": 2, "gripper_weight": 0.5} | fields)


def one_step(motion, logit):
  """Returns an answer of one window, step and chunk entry."""
  return HeadOutput(jnp.full((1, 1, 1, 1), motion), jnp.full((1, 1, 1, 1), logit))


@pytest.mark.parametrize(("regression", "error", "motion_loss"), [
  ("huber", 0.5, 0.125), ("huber", 3.0, 2.5), ("mse", 3.0, 9.0)])
def test_the_loss_by_hand(regression, error, motion_loss):
  batch = {"features_BWD": np.zeros((1, 1, 6)), "actions_BWTA": np.array([[[[1.0, 1.0]]]])}
  loss, metrics = losses.output_loss(small_config(regression=regression), one_step(1.0 + error, 0.0), batch)
  np.testing.assert_allclose(metrics["motion_loss"], motion_loss, rtol=1e-6)
  np.testing.assert_allclose(metrics["gripper_loss"], np.log(2), rtol=1e-6)
  np.testing.assert_allclose(metrics["motion_error"], error, rtol=1e-6)
  np.testing.assert_allclose(loss, motion_loss + 0.5 * np.log(2), rtol=1e-6)


def test_the_discrete_loss_is_the_cross_entropy_of_the_labels_bin():
  config = small_config("discrete", bins=4)
  logits = jnp.array([0.0, 1.0, 2.0, 3.0])
  output = HeadOutput(jnp.zeros((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1)), logits.reshape(1, 1, 1, 1, 4))
  batch = {"features_BWD": np.zeros((1, 1, 6)), "actions_BWTA": np.array([[[[-0.3, 1.0]]]])}
  _, metrics = losses.output_loss(config, output, batch)
  np.testing.assert_allclose(metrics["motion_loss"], -jax.nn.log_softmax(logits)[1], rtol=1e-6)


def test_padding_of_history_and_chunk_counts_for_nothing(make_head, batch):
  head, params = make_head("lstm")
  mask_BW = np.array([[False, True, True, True], [True] * 4, [False, False, False, True]])
  action_mask_BWT = np.ones((3, 4, 2), bool)
  action_mask_BWT[:, 3, 1] = False
  batch = batch | {"mask_BW": mask_BW, "action_mask_BWT": action_mask_BWT}
  grad = jax.jit(jax.value_and_grad(lambda p, b: losses.head_loss(head, p, b)[0]))
  loss, grads = grad(params, batch)
  spoiled = {key: value.copy() for key, value in batch.items()}
  spoiled["features_BWD"][~mask_BW] = np.nan
  spoiled["actions_BWTA"][~mask_BW] = np.nan
  spoiled["actions_BWTA"][:, 3, 1] = np.nan
  loss_spoiled, grads_spoiled = grad(params, spoiled)
  assert np.isfinite(loss) and loss == loss_spoiled
  jax.tree.map(np.testing.assert_array_equal, grads, grads_spoiled)


def test_parts_of_a_batch_average_to_the_whole_dropout_included(make_head, batch):
  head, params = make_head("lstm", dropout=0.5, layers=1)
  mask_BW = np.array([[False, True, True, True], [True] * 4, [False, False, False, True]])
  batch = batch | {"mask_BW": mask_BW, "index_B": np.arange(3)}
  loss = jax.jit(lambda b: losses.head_loss(head, params, b, jax.random.key(0))[0])
  parts = [loss({key: value[i : i + 1] for key, value in batch.items()}) for i in range(3)]
  np.testing.assert_allclose(loss(batch), np.mean(parts), rtol=1e-5)
  assert loss(batch) != jax.jit(lambda b: losses.head_loss(head, params, b)[0])(batch)


@pytest.mark.parametrize(("name", "sizes"), [("discrete", {}), ("lstm", {"layers": 1})])
def test_heads_learn(name, sizes, make_head, batch):
  head, params = make_head(name, **sizes)
  batch = batch | {"actions_BWTA": batch["actions_BWTA"] * np.array([0.3, 0.3, 1.0], np.float32)}
  optimizer = optax.adam(0.02)

  @jax.jit
  def train(params):
    def step(carry, _):
      params, opt_state = carry
      grads, metrics = jax.grad(functools.partial(losses.head_loss, head), has_aux=True)(params, batch)
      updates, opt_state = optimizer.update(grads, opt_state)
      return (optax.apply_updates(params, updates), opt_state), metrics["loss"]

    return jax.lax.scan(step, (params, optimizer.init(params)), length=150)

  _, history = train(params)
  assert history[-1] < 0.5 * history[0]


def test_labels_of_another_chunk_are_refused(make_head, batch):
  head, params = make_head("mlp")
  with pytest.raises(Pi0RagError, match=r"labels have shape \(3, 4, 1, 3\), the head answers with \(3, 4, 2, 3\)"):
    losses.head_loss(head, params, batch | {"actions_BWTA": batch["actions_BWTA"][:, :, :1]})
