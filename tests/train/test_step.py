"""The pure steps: the guard against non-finite updates, the average, the draws."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train import parallel, step


def _loss(params, batch, rng):
  loss = jnp.mean(params["policy"] * batch["x"])
  return loss, {"loss": loss}


def _compiled(optimizer):
  def one(state, batch):
    return step.train_step(state, batch, loss_fn=_loss, optimizer=optimizer, seed=0, ema_decay=0.9)

  return parallel.compile_step(one, donate_state=False)


def _state(optimizer):
  return parallel.replicate(step.init_state({"policy": jnp.asarray(2.0)}, optimizer))


def test_a_hand_worked_step():
  optimizer = optax.sgd(0.5)
  after, metrics = _compiled(optimizer)(_state(optimizer), {"x": np.array([[1.0, 3.0]])})
  assert float(metrics["loss"]) == 4.0
  assert float(metrics["grad_norm"]) == 2.0
  assert float(after.params["policy"]) == 1.0  # 2 - 0.5 * 2
  np.testing.assert_allclose(float(after.ema["policy"]), 0.9 * 2 + 0.1 * 1)
  assert int(after.step) == 1


def test_a_step_that_is_not_finite_changes_nothing_but_the_count():
  optimizer = optax.adam(0.5)
  before = _state(optimizer)
  after, metrics = _compiled(optimizer)(before, {"x": np.array([[1.0, np.inf]])})
  assert float(metrics["skipped"]) == 1.0
  assert int(after.step) == 1
  for old, new in zip(*(jax.tree.leaves((s.params, s.ema, s.opt_state)) for s in (before, after))):
    np.testing.assert_array_equal(old, new)


def test_draws_differ_between_examples_and_steps_and_repeat():
  def draw(seed, batch):
    return step.draw_noise(jax.random.key(seed), batch, draws=2)

  run = parallel.compile_step(draw, donate_state=False)
  batch = np.zeros((1, 5, 4, 3), np.float32)
  noise_DBTA, time_DB = run(0, batch)
  assert noise_DBTA.shape == (2, 5, 4, 3)
  assert time_DB.shape == (2, 5)
  assert len(np.unique(np.asarray(time_DB))) == 10
  assert float(time_DB.min()) > 0 and float(time_DB.max()) <= 1
  np.testing.assert_array_equal(noise_DBTA, run(0, batch)[0])
  assert np.abs(np.asarray(noise_DBTA) - np.asarray(run(1, batch)[0])).max() > 0.1
