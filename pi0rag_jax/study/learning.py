"""A small network that learns the field of a flow, or of a diffusion, from samples alone; seconds on a CPU."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from pi0rag_jax.models import flow
from pi0rag_jax.study.plane import LINEAR, Field, Mixture

FLOW, DIFFUSION = KINDS = ("flow", "diffusion")
_TIME_WIDTH = 32


@dataclasses.dataclass(frozen=True)
class Training:
  """How a field is learned."""

  steps: int = 2000
  batch_size: int = 512
  width: int = 64
  depth: int = 3
  learning_rate: float = 1e-2


class FieldNetwork(nn.Module):
  """From noisy actions and their times to what is foreseen there."""

  width: int
  depth: int

  @nn.compact
  def __call__(self, x_BTA, time_B):
    hidden = jnp.concatenate([x_BTA.reshape(len(x_BTA), -1), flow.posemb_sincos(time_B, _TIME_WIDTH)], axis=-1)
    for _ in range(self.depth):
      hidden = nn.swish(nn.Dense(self.width)(hidden))
    return nn.Dense(x_BTA[0].size)(hidden).reshape(x_BTA.shape)


def learned(kind: str, mixture: Mixture, training: Training, *, seed: int) -> tuple[Field, float]:
  """Returns (the field, the mean loss of the last tenth of the training).

  Args:
    kind: 'flow' foresees velocities at pi0's training times, 'diffusion' noise at uniform ones (DDPM).
  """
  params, loss_N = _trained(mixture, _EXAMPLES[kind], training, seed)
  return Field(_foreseen(training), params), float(loss_N[-max(len(loss_N) // 10, 1):].mean())


@functools.cache
def _foreseen(training: Training) -> Callable:
  network = FieldNetwork(training.width, training.depth)
  return lambda params, x_BTA, time: network.apply(params, x_BTA, jnp.broadcast_to(time, len(x_BTA)))


def _flow_examples(mixture: Mixture, rng, count: int):
  """Returns (x_BTA, time_B, velocity_BTA), as pi0 is trained."""
  of_action, of_noise, of_time = jax.random.split(rng, 3)
  action_BTA, time_B = mixture.sample(of_action, count), flow.sample_time(of_time, (count,))
  x_BTA, velocity_BTA = flow.interpolate(action_BTA, jax.random.normal(of_noise, action_BTA.shape), time_B)
  return x_BTA, time_B, velocity_BTA


def _diffusion_examples(mixture: Mixture, rng, count: int):
  """Returns (x_BTA, time_B, noise_BTA), as DDPM is trained."""
  of_action, of_noise, of_time = jax.random.split(rng, 3)
  action_BTA = mixture.sample(of_action, count)
  noise_BTA = jax.random.normal(of_noise, action_BTA.shape)
  time_B = jax.random.uniform(of_time, (count,), minval=flow.TIME_MIN)
  signal_B, spread_B = LINEAR.signal(time_B), LINEAR.spread(time_B)
  return signal_B[:, None, None] * action_BTA + spread_B[:, None, None] * noise_BTA, time_B, noise_BTA


_EXAMPLES = {FLOW: _flow_examples, DIFFUSION: _diffusion_examples}


@functools.partial(jax.jit, static_argnames=("mixture", "examples", "training"))
def _trained(mixture: Mixture, examples: Callable, training: Training, seed):
  network = FieldNetwork(training.width, training.depth)
  of_params, of_steps = jax.random.split(jax.random.key(seed))
  params = network.init(of_params, jnp.zeros((1, 1, 2)), jnp.zeros(1))
  optimizer = optax.adam(optax.cosine_decay_schedule(training.learning_rate, training.steps))

  def loss(params, rng):
    x_BTA, time_B, wanted_BTA = examples(mixture, rng, training.batch_size)
    return jnp.square(network.apply(params, x_BTA, time_B) - wanted_BTA).mean()

  def step(state, number):
    params, moments = state
    value, gradient = jax.value_and_grad(loss)(params, jax.random.fold_in(of_steps, number))
    updates, moments = optimizer.update(gradient, moments)
    return (optax.apply_updates(params, updates), moments), value

  (params, _), loss_N = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(training.steps))
  return params, loss_N
