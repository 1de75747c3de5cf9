"""The pure step: the guard against non-finite updates, the average, frozen parameters, accumulation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train import parallel, partition, step


def _loss(params, frozen, batch, rng):
  del rng
  loss = jnp.mean(params["policy"]["a"] * frozen["policy"]["b"] * batch["x"])
  return loss, {"loss": loss}


def _run(optimizer, state, x, *, ema_decay=0.9, microbatches=1, devices=None):
  devices = devices or parallel.Replicated()
  one = functools.partial(step.train_step, loss_fn=_loss, optimizer=optimizer, seed=0, ema_decay=ema_decay,
                          mean=devices.mean, microbatches=microbatches)
  frozen = devices.place({"policy": {"b": jnp.asarray(1.0)}})
  return devices.compile_train(one)(jax.tree.map(jnp.copy, state), frozen, devices.place_batch({"x": np.asarray(x)}))


def _state(optimizer, **options):
  return parallel.Replicated().place(step.init_state({"policy": {"a": jnp.asarray(2.0)}}, optimizer, **options))


def test_a_hand_worked_step():
  optimizer = optax.sgd(0.5)
  after, metrics = _run(optimizer, _state(optimizer), [1.0, 3.0])
  assert float(metrics["loss"]) == 4.0
  assert float(metrics["grad_norm"]) == 2.0
  assert float(after.params["policy"]["a"]) == 1.0  # 2 - 0.5 * 2
  np.testing.assert_allclose(float(after.ema["policy"]["a"]), 0.9 * 2 + 0.1 * 1)
  assert int(after.step) == 1


@pytest.mark.parametrize("devices", [parallel.Replicated, parallel.Sharded])
def test_accumulated_gradients_are_those_of_the_whole_batch(devices):
  optimizer = optax.sgd(0.5)
  x = [1.0, 3.0, -2.0, 6.0]
  whole, parts = (_run(optimizer, _state(optimizer), x, microbatches=n, devices=devices()) for n in (1, 2))
  assert float(whole[0].params["policy"]["a"]) == float(parts[0].params["policy"]["a"]) == 1.0
  assert float(whole[1]["loss"]) == float(parts[1]["loss"]) == 4.0


def test_a_step_that_is_not_finite_changes_nothing_but_the_count():
  optimizer = optax.adam(0.5)
  before = _state(optimizer)
  after, metrics = _run(optimizer, before, [1.0, np.inf])
  assert float(metrics["skipped"]) == 1.0
  assert int(after.step) == 1
  for old, new in zip(*(jax.tree.leaves((s.params, s.ema, s.opt_state)) for s in (before, after))):
    np.testing.assert_array_equal(old, new)


def test_without_an_average_the_parameters_are_exported():
  optimizer = optax.sgd(0.5)
  after, _ = _run(optimizer, _state(optimizer, ema=False), [1.0, 3.0], ema_decay=0.0)
  assert after.ema is None
  assert float(after.averaged["policy"]["a"]) == 1.0


def test_the_norm_counts_matrices_alone():
  params = {"dense": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full((2, 2), 9.0)}, "scale": jnp.full(4, 9.0),
            "input_embedding": jnp.full((2, 2), 9.0)}
  assert float(step.parameter_norm(params)) == 4.0


def test_a_tree_is_split_and_joined():
  params = {"a": {"lora_a": 1, "w": 2}, "b": 3}
  trainable, frozen = partition.split(params, lambda path: "lora" in path)
  assert (trainable, frozen) == ({"a": {"lora_a": 1}}, {"a": {"w": 2}, "b": 3})
  assert partition.join(trainable, frozen) == params
