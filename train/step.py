"""One training step and one validation step: pure functions of a state and a batch, compiled in `parallel`."""

import functools
from collections.abc import Callable, Mapping

import flax.struct
import jax
import jax.numpy as jnp
import optax

from pi0rag_jax.models import flow, pi0
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.typing import Array, Config, Params
from train import auxiliary, parallel

# Distinguishes the keys of training from those of validation, which are the same at every validation.
_TRAIN_STREAM, _VALIDATION_STREAM = 0, 1


@flax.struct.dataclass
class TrainState:
  """Everything that changes while training; `params` and `ema` have the keys `policy` and `auxiliary`."""

  step: Array  # int32[]
  params: dict[str, Params]
  ema: dict[str, Params]
  opt_state: optax.OptState


def init_state(params: dict[str, Params], optimizer: optax.GradientTransformation) -> TrainState:
  """Returns the state before the first step; the average starts at the parameters, as a copy."""
  ema = jax.tree.map(jnp.copy, params)
  return TrainState(step=jnp.zeros((), jnp.int32), params=params, ema=ema, opt_state=optimizer.init(params))


def make_train_step(model: pi0.Pi0, optimizer: optax.GradientTransformation, config: Config) -> Callable:
  """Returns step(state, batch) -> (state, metrics); see `train_step`."""
  options = {"draws": config.draws, "auxiliary_weight": config.auxiliary_weight}
  loss_fn = functools.partial(batch_loss, model, **options)
  return functools.partial(
    train_step, loss_fn=loss_fn, optimizer=optimizer, seed=config.seed, ema_decay=config.ema_decay
  )


def train_step(state: TrainState, batch: Mapping, *, loss_fn, optimizer, seed: int, ema_decay: float):
  """Returns (the next state, metrics); an update that is not finite is skipped and counted, the step still counts.

  Args:
    state: replicated.
    batch: this device's part; see `batch_loss`.
    loss_fn: (params, batch, rng) -> (loss, metrics).
    optimizer: of the whole `params`.
    seed: of the noise; a step's draws depend on it, the step and an example's place in the global batch.
    ema_decay: of the average that is exported.
  """
  rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _TRAIN_STREAM), state.step)
  grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, batch, rng)
  grads, metrics = parallel.mean_over_devices((grads, metrics))
  grad_norm = optax.tree.norm(grads)
  finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema = jax.tree.map(lambda old, new: ema_decay * old + (1 - ema_decay) * new, state.ema, params)
  keep = lambda new, old: jax.tree.map(functools.partial(jnp.where, finite), new, old)  # noqa: E731
  next_state = TrainState(
    step=state.step + 1,
    params=keep(params, state.params),
    ema=keep(ema, state.ema),
    opt_state=keep(opt_state, state.opt_state),
  )
  return next_state, metrics | {"grad_norm": grad_norm, "skipped": 1.0 - finite}


def batch_loss(model: pi0.Pi0, params: Mapping, batch: Mapping, rng, *, draws: int, auxiliary_weight: float):
  """Returns (loss, metrics) of one device's part of a batch.

  Args:
    model: the network.
    params: `policy` and `auxiliary`.
    batch: `observation` (openpi's dictionary), `actions_BTA` normalized and padded, `targets_BG` normalized.
    rng: key of this step, the same on every device.
    draws: (time, noise) pairs per encoded observation.
    auxiliary_weight: of the squared error of the auxiliary head.
  """
  observation = Observation.from_dict(batch["observation"])
  actions_BTA = batch["actions_BTA"]
  noise_DBTA, time_DB = draw_noise(rng, actions_BTA, draws)
  losses_DBT, prefix = pi0.loss_draws(model, params["policy"], observation, actions_BTA, noise_DBTA, time_DB)
  targets_BG = auxiliary.predict(params["auxiliary"], prefix)
  flow_loss = jnp.mean(losses_DBT)
  auxiliary_loss = jnp.mean(jnp.square(targets_BG - batch["targets_BG"]))
  loss = flow_loss + auxiliary_weight * auxiliary_loss
  return loss, {"loss": loss, "flow_loss": flow_loss, "auxiliary_loss": auxiliary_loss}


def draw_noise(rng, actions_BTA, draws: int):
  """Returns (noise float[draws, B, T, A], time float[draws, B]), the same however the batch is split.

  Every example has its own key, made from its place in the global batch; only inside a step.
  """

  def draw(index):
    noise_key, time_key = jax.random.split(jax.random.fold_in(rng, index))
    noise_DTA = jax.random.normal(noise_key, (draws, *actions_BTA.shape[1:]))
    return noise_DTA, flow.sample_time(time_key, (draws,))

  return jax.vmap(draw, out_axes=1)(parallel.example_indices(actions_BTA.shape[0]))


def make_validation_step(model: pi0.Pi0, stats: Mapping, config: Config) -> Callable:
  """Returns step(params, batch) -> metrics, of the averaged parameters; `stats` turn errors into mm."""
  return functools.partial(
    validation_step,
    model=model,
    scale_A=jnp.asarray(stats["actions"].std, jnp.float32),
    config=config,
  )


def validation_step(params: Mapping, batch: Mapping, *, model, scale_A, config: Config):
  """Returns the losses and how far the chunk sampled from z = 0 is from the label.

  `path_error_mm`: distance between both tool positions after the `execute_steps` that are carried out;
  `gripper_error`: mean absolute difference of the commanded opening there.
  """
  rng = jax.random.fold_in(jax.random.key(config.seed), _VALIDATION_STREAM)
  _, metrics = batch_loss(
    model, params, batch, rng, draws=config.draws, auxiliary_weight=config.auxiliary_weight
  )
  observation = Observation.from_dict(batch["observation"])
  chunk_BTA = pi0.sample_actions(
    model, params["policy"], observation, jnp.zeros_like(batch["actions_BTA"]), num_steps=config.denoising_steps
  )
  used = (chunk_BTA - batch["actions_BTA"])[:, : config.execute_steps, : scale_A.shape[0]] * scale_A
  path_B3 = jnp.sum(used[..., list(config.position_dims)], axis=1)
  metrics |= {
    "path_error_mm": 1000 * jnp.mean(jnp.linalg.norm(path_B3, axis=-1)),
    "gripper_error": jnp.mean(jnp.abs(used[..., list(config.gripper_dims)])),
  }
  return parallel.mean_over_devices(metrics)
