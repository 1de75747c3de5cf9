"""Actions of two numbers, drawn from a mixture of Gaussians: what every noisy action says of them, in closed form.

A noisy action is signal * action + spread * noise; `Schedule` says how much of each there is at a time. Time runs as
in openpi, whatever the schedule: t = 1 is noise, t = 0 the action. Most papers on flow matching count the other way.
Shapes are those of chunks, float[B, T, A], with T = 1 and A = 2. Letters beyond the project's key: `C` is a component
of the mixture, `N` a step.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.spatial.distance
import scipy.special
import scipy.stats.qmc

from pi0rag_jax.models import flow

# (x_BTA, time) to what is foreseen there: the velocity for a flow, the noise for a diffusion. Compiled functions take
# it as an argument, parameters and all.
Field = jax.tree_util.Partial


class Schedule(NamedTuple):
  """How much of the action and of the noise is in a noisy action at a time."""

  signal: Callable
  spread: Callable


STRAIGHT = Schedule(lambda time: 1 - time, lambda time: time)  # pi0's, see `flow.interpolate`


def _preserving(signal: Callable) -> Schedule:
  return Schedule(signal, lambda time: jnp.sqrt(1 - jnp.square(signal(time))))


# DDPM's linear betas in continuous time: from 0.1 to 20. Source: Song et al. (arXiv 2011.13456), VP.
_BETA_MIN, _BETA_MAX = 0.1, 20.0
LINEAR = _preserving(lambda time: jnp.exp(-jnp.square(time) * (_BETA_MAX - _BETA_MIN) / 4 - time * _BETA_MIN / 2))
# Source: Nichol and Dhariwal (arXiv 2102.09672); the end is kept from pure noise, of which no action can be told.
_COSINE_END = 0.999
COSINE = _preserving(lambda time: jnp.cos(_COSINE_END * time * math.pi / 2))


@dataclasses.dataclass(frozen=True)
class Mixture:
  """What one observation leaves open: modes, each a round Gaussian."""

  weight_C: tuple[float, ...]
  mean_CA: tuple[tuple[float, float], ...]
  std: float

  @property
  def mean_A(self) -> np.ndarray:
    """The mean action, which need not be near any mode."""
    return np.asarray(self.weight_C) @ np.asarray(self.mean_CA)

  def sample(self, rng, count: int):
    """Returns float32[count, 1, A]."""
    which, noise = jax.random.split(rng)
    mode_B = jax.random.categorical(which, jnp.log(jnp.asarray(self.weight_C)), shape=(count,))
    action_BA = jnp.asarray(self.mean_CA)[mode_B] + self.std * jax.random.normal(noise, (count, 2))
    return action_BA[:, None]

  def even(self, count: int, *, seed: int) -> jax.Array:
    """Returns float32[about count, 1, A]: as `sample`, but evenly spread, each mode with its share."""
    of_mode_C = [round(weight * count) for weight in self.weight_C]
    rows = [np.asarray(mean_A) + self.std * np.asarray(even_noise(n, seed=seed + index))[:, 0]
            for index, (n, mean_A) in enumerate(zip(of_mode_C, self.mean_CA)) if n]
    return jnp.asarray(np.concatenate(rows)[:, None], jnp.float32)

  def mode(self, action_BTA) -> np.ndarray:
    """Returns the nearest mode int[B] of actions."""
    return scipy.spatial.distance.cdist(np.asarray(action_BTA)[:, 0], np.asarray(self.mean_CA)).argmin(axis=1)

  def expected(self, x_BTA, signal, spread):
    """Returns (action_BTA, noise_BTA): the means of both, given the noisy action."""
    variance = jnp.square(signal * self.std) + jnp.square(spread)
    apart_CBTA = x_BTA - signal * jnp.asarray(self.mean_CA)[:, None, None]
    log_CB = jnp.log(jnp.asarray(self.weight_C))[:, None] - jnp.square(apart_CBTA).sum((-2, -1)) / (2 * variance)
    share_CB = jax.nn.softmax(log_CB, axis=0)
    noise_BTA = jnp.einsum("cb,cbta->bta", share_CB, spread / variance * apart_CBTA)
    mean_BTA = jnp.einsum("cb,ca->ba", share_CB, jnp.asarray(self.mean_CA))[:, None]
    centred_BTA = jnp.einsum("cb,cbta->bta", share_CB, signal * self.std**2 / variance * apart_CBTA)
    return mean_BTA + centred_BTA, noise_BTA


def even_noise(count: int, *, seed: int) -> jax.Array:
  """Returns unit Gaussian noise float32[count, 1, A] that fills the plane evenly, so that chance makes less of a
  distance.
  """
  points_BA = scipy.stats.qmc.Halton(2, rng=np.random.default_rng(seed)).random(count)
  return jnp.asarray(scipy.special.ndtri(points_BA)[:, None], jnp.float32)


@functools.cache
def exact_velocity(mixture: Mixture) -> Field:
  """Returns the field that a flow would learn, had it no limits: the mean of noise - action."""

  def velocity(x_BTA, time):
    action_BTA, noise_BTA = mixture.expected(x_BTA, STRAIGHT.signal(time), STRAIGHT.spread(time))
    return noise_BTA - action_BTA

  return Field(velocity)


@functools.cache
def exact_noise(mixture: Mixture, schedule: Schedule) -> Field:
  """Returns the field that a diffusion would learn, had it no limits: the mean of the noise."""
  return Field(lambda x_BTA, time: mixture.expected(x_BTA, schedule.signal(time), schedule.spread(time))[1])


def velocity_of(field: Field, num_steps: int) -> Callable:
  """Returns the function of (x_BTA, step) that `flow.euler` and `flow.invert` follow."""
  time_N = jnp.asarray(flow.times(num_steps))
  return lambda x_BTA, step: field(x_BTA, time_N[step])


@functools.partial(jax.jit, static_argnames="num_steps")
def flow_path(field: Field, start_BTA, num_steps: int):
  """Returns where `flow.euler` comes by on its way, float[N + 1, B, T, A]; the first is the start."""
  velocity = velocity_of(field, num_steps)
  return _path(lambda x_BTA, step: flow.euler(velocity, x_BTA, num_steps=num_steps, first=step, last=step + 1),
               start_BTA, num_steps)


@functools.partial(jax.jit, static_argnames=("num_steps", "schedule"))
def diffusion_path(field: Field, start_BTA, num_steps: int, *, schedule: Schedule, rng=None):
  """Returns where a diffusion comes by, float[N + 1, B, T, A]: DDIM, or with a key DDPM's own random steps.

  DDIM (arXiv 2010.02502) follows the probability-flow ODE, by steps that are exact where the noise does not change;
  with its eta = 1 they are DDPM's.
  """
  time_N = jnp.asarray(flow.times(num_steps))

  def advance(x_BTA, step):
    signal, spread = schedule.signal(time_N[step]), schedule.spread(time_N[step])
    # What is added up in float32 does not end at 0.
    after = jnp.where(step == num_steps - 1, 0.0, time_N[step + 1])
    next_signal, next_spread = schedule.signal(after), schedule.spread(after)
    noise_BTA = field(x_BTA, time_N[step])
    clean_BTA = (x_BTA - spread * noise_BTA) / signal
    if rng is None:
      return next_signal * clean_BTA + next_spread * noise_BTA
    fresh = next_spread / spread * jnp.sqrt(jnp.maximum(1 - jnp.square(signal / next_signal), 0.0))
    kept = jnp.sqrt(jnp.maximum(jnp.square(next_spread) - jnp.square(fresh), 0.0))
    drawn_BTA = jax.random.normal(jax.random.fold_in(rng, step), x_BTA.shape)
    return next_signal * clean_BTA + kept * noise_BTA + fresh * drawn_BTA

  return _path(advance, start_BTA, num_steps)


def _path(advance: Callable, start_BTA, num_steps: int):
  def step(x_BTA, number):
    after_BTA = advance(x_BTA, number)
    return after_BTA, after_BTA

  _, after_NBTA = jax.lax.scan(step, start_BTA, jnp.arange(num_steps))
  return jnp.concatenate([start_BTA[None], after_NBTA])


def detour(path_NBTA) -> float:
  """Returns how much longer paths are, all together, than the straight lines between their ends; 1 is straight."""
  path_NBTA = np.asarray(path_NBTA, np.float64)
  length = np.linalg.norm(np.diff(path_NBTA, axis=0), axis=(-2, -1)).sum()
  return float(length / max(np.linalg.norm(path_NBTA[-1] - path_NBTA[0], axis=(-2, -1)).sum(), 1e-9))


def wasserstein(one_BTA, other_BTA) -> float:
  """Returns the 2-Wasserstein distance of as many samples, by the assignment of the least cost."""
  one_BF, other_BF = (np.asarray(each, np.float64).reshape(len(each), -1) for each in (one_BTA, other_BTA))
  cost_BB = scipy.spatial.distance.cdist(one_BF, other_BF, "sqeuclidean")
  return float(np.sqrt(cost_BB[scipy.optimize.linear_sum_assignment(cost_BB)].mean()))
