"""One training step of anything: a pure function of state, frozen parameters and batch, compiled in `parallel`."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from pi0rag_jax.typing import Array, Params

# (trainable, frozen, batch, rng) -> (loss, metrics); metrics are means over the batch, as the loss is.
LossFn = Callable[[Params, Params, Mapping, Any], tuple[Any, Mapping[str, Any]]]

# Distinguish the keys of training from those of validation, which are the same at every validation.
_TRAIN_STREAM, _VALIDATION_STREAM = 0, 1
# openpi's norm of the parameters counts matrices alone, without these.
_UNCOUNTED = ("bias", "scale", "pos_embedding", "input_embedding")


@flax.struct.dataclass
class TrainState:
  """Everything that changes while training."""

  step: Array  # int32[]
  params: Params  # the trainable ones
  ema: Params | None  # their moving average, None where none is kept
  opt_state: optax.OptState

  @property
  def averaged(self) -> Params:
    """The parameters that are validated and exported."""
    return self.params if self.ema is None else self.ema


def init_state(params: Params, optimizer: optax.GradientTransformation, *, ema: bool = True) -> TrainState:
  """Returns the state before the first step; the average starts at the parameters, as a copy."""
  average = jax.tree.map(jnp.copy, params) if ema else None
  return TrainState(step=jnp.zeros((), jnp.int32), params=params, ema=average, opt_state=optimizer.init(params))


def train_step(state: TrainState, frozen: Params, batch: Mapping, *, loss_fn: LossFn,
               optimizer: optax.GradientTransformation, seed: int, ema_decay: float, mean: Callable,
               microbatches: int = 1):
  """Returns (the next state, metrics); an update that is not finite is skipped and counted, the step still counts.

  Args:
    state: of the trainable parameters.
    frozen: the others; never differentiated.
    batch: this device's part, every array [B, ...].
    loss_fn: see LossFn; its draws come from the key that it is given, which depends on seed and step alone.
    seed: of the draws.
    ema_decay: of the average that is exported, where the state keeps one.
    mean: over all devices, see `parallel`.
    microbatches: parts of the batch whose gradients are accumulated one after the other, for want of memory.
  """
  rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _TRAIN_STREAM), state.step)
  grads, metrics = mean(gradients(loss_fn, state.params, frozen, batch, rng, microbatches))
  grad_norm = optax.tree.norm(grads)
  finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
  next_state = apply_gradients(state, grads, optimizer=optimizer, ema_decay=ema_decay)
  keep = lambda new, old: jax.tree.map(functools.partial(jnp.where, finite), new, old)  # noqa: E731
  next_state = keep(next_state, state.replace(step=next_state.step))
  norms = {"grad_norm": grad_norm, "param_norm": parameter_norm(next_state.params)}
  return next_state, metrics | norms | {"skipped": 1.0 - finite}


def validation_key(seed: int):
  """Returns the key of every validation of a run."""
  return jax.random.fold_in(jax.random.key(seed), _VALIDATION_STREAM)


def gradients(loss_fn: LossFn, params: Params, frozen: Params, batch: Mapping, rng, microbatches: int = 1):
  """Returns (gradients, metrics) of a batch, the mean over its equal parts."""
  differentiate = jax.grad(loss_fn, has_aux=True)
  if microbatches == 1:
    return differentiate(params, frozen, batch, rng)
  parts = jax.tree.map(lambda x: x.reshape(microbatches, x.shape[0] // microbatches, *x.shape[1:]), batch)
  one = lambda part: differentiate(params, frozen, part, rng)  # noqa: E731
  shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
  start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  add = lambda total, part: (jax.tree.map(jnp.add, total, one(part)), None)  # noqa: E731
  total, _ = jax.lax.scan(add, start, parts)
  return jax.tree.map(lambda x: x / microbatches, total)


def apply_gradients(state: TrainState, grads: Params, *, optimizer: optax.GradientTransformation,
                    ema_decay: float) -> TrainState:
  """Returns the state after one update of the optimizer."""
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params: Any = optax.apply_updates(state.params, updates)
  average = state.ema
  if average is not None:
    average = jax.tree.map(lambda old, new: ema_decay * old + (1 - ema_decay) * new, average, params)
  return TrainState(step=state.step + 1, params=params, ema=average, opt_state=opt_state)


def parameter_norm(params: Params):
  """Returns the global norm float[] of the weight matrices, as openpi counts them."""
  flat = traverse_util.flatten_dict(params, sep="/")
  return optax.tree.norm({
    path: leaf for path, leaf in flat.items()
    if leaf.ndim > 1 and not any(name in path.split("/")[-1] for name in _UNCOUNTED)})
