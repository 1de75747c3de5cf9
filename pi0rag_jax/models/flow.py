"""Flow matching: the path from noise to action, its training times, and the Euler solver.

Flow time runs as in openpi: t = 1 is noise, t = 0 is the action.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.typing import Array

# pi0's training times: Beta(1.5, 1) leans towards noise, where the observation decides most.
TIME_ALPHA, TIME_BETA = 1.5, 1.0
# Keeps t away from 0, where there is nothing left to predict.
TIME_MIN, TIME_SPAN = 0.001, 0.999
# Periods of the time embedding, in units of flow time.
MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0


def interpolate(action_BTA, noise_BTA, time_B):
  """Returns the noisy chunk and the velocity the network must predict.

  Args:
    action_BTA: float[B, T, A], normalized, unitless.
    noise_BTA: float[B, T, A], unit Gaussian.
    time_B: float[B], flow time in (0, 1]; 1 is pure noise.
  Returns:
    (noisy_BTA, velocity_BTA) with velocity = noise - action.
  Source: pi0 (arXiv 2410.24164), with openpi's time direction.
  """
  t = time_B[:, None, None]
  return t * noise_BTA + (1 - t) * action_BTA, noise_BTA - action_BTA


def sample_time(rng, shape):
  """Returns float32[shape] training times in [0.001, 1], distributed as pi0's."""
  return jax.random.beta(rng, TIME_ALPHA, TIME_BETA, shape) * TIME_SPAN + TIME_MIN


def posemb_sincos(time_B, width, *, min_period=MIN_PERIOD, max_period=MAX_PERIOD):
  """Returns float32[B, width]: sines, then cosines, of 2 pi t / period for geometrically spaced periods."""
  fraction = jnp.linspace(0.0, 1.0, width // 2)
  period = min_period * (max_period / min_period) ** fraction
  phase = time_B[:, None] * (1.0 / period * 2 * jnp.pi)
  return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


# Bound on how strongly a step is sent to a guide, as real-time chunking chose it: early steps would go astray.
GUIDE_MAX = 5.0


class Guide(NamedTuple):
  """A chunk that a flow is led to, ticks of weight 0 excepted."""

  target_BTA: Array  # normalized
  weight_BT: Array  # in [0, 1]


def euler(velocity, noise_BTA, *, num_steps, first=0, last=None, correct=None, guide: Guide | None = None):
  """Returns the chunk [B, T, A] at t = 0, from the noise at t = 1, by equal steps along the velocity.

  Args:
    velocity: function of (x_BTA, step) to [B, T, A]; `times` says when a step, an int32, begins.
    noise_BTA: float[B, T, A], where the first step begins.
    num_steps: static count of steps from t = 1 to t = 0, at least 1.
    first, last: of these steps only those from `first` up to, but without, `last` are taken.
    correct: function of the clean chunk [B, T, A] that a step foresees, x - t v, to the one that it shall go to.
    guide: leads the flow by the gradient of how far what a step foresees is from it. Source: real-time chunking
      (arXiv 2506.07339), equations 2 to 4, where flow time runs the other way.
  """
  time_N, dt = jnp.asarray(times(num_steps)), -1.0 / num_steps

  def advance(step, x_BTA):
    if guide is None:
      v_BTA = velocity(x_BTA, step)
    else:
      v_BTA = _guided(velocity, x_BTA, step, time_N[step], guide)
    if correct is not None:
      v_BTA = (x_BTA - correct(x_BTA - time_N[step] * v_BTA)) / time_N[step]
    return x_BTA + dt * v_BTA

  return jax.lax.fori_loop(first, num_steps if last is None else last, advance, noise_BTA)


def _guided(velocity, x_BTA, step, time, guide: Guide):
  """Returns the velocity [B, T, A] at flow time `time` that also leads to the guide."""

  def foreseen(x_BTA):
    v_BTA = velocity(x_BTA, step)
    return x_BTA - time * v_BTA, v_BTA

  clean_BTA, pull, v_BTA = jax.vjp(foreseen, x_BTA, has_aux=True)
  (lead_BTA,) = pull(guide.weight_BT[..., None] * (guide.target_BTA - clean_BTA))
  # At the first step, t = 1, the paper's factor is infinite, and its bound holds.
  factor = (jnp.square(1 - time) + jnp.square(time)) / jnp.maximum(time * (1 - time), 1e-6)
  return v_BTA - jnp.minimum(factor, GUIDE_MAX) * lead_BTA


def invert(velocity, chunk_BTA, *, num_steps, iterations):
  """Returns the noise [B, T, A] from which `euler` comes to a chunk, as nearly as its fixed points are found.

  A step goes from x to y = x + dt v(x). Backwards x is the fixed point of y - dt v(x), iterated from y. For chunks far
  from what the policy does it may not converge: run the noise forward to see how near it comes.

  Args:
    velocity, num_steps: of `euler`.
    chunk_BTA: float[B, T, A], where the last step ends.
    iterations: static; evaluations of the velocity for each step, 1 or more.
  Source: FlowDAgger (arXiv 2607.08877), which inverts the sampler's own steps instead of the differential equation.
  """
  dt = -1.0 / num_steps

  def undo(count, y_BTA):
    nearer = lambda _, x_BTA: y_BTA - dt * velocity(x_BTA, num_steps - 1 - count)  # noqa: E731
    return jax.lax.fori_loop(0, iterations, nearer, y_BTA)

  return jax.lax.fori_loop(0, num_steps, undo, chunk_BTA)


def times(num_steps: int) -> np.ndarray:
  """Returns float32[num_steps + 1]: the flow times at which the steps of `euler` begin, and where the last one ends.

  Added up in float32 as openpi does: the time embedding, of period 4e-3, is that sensitive.
  """
  return np.cumsum([1.0] + num_steps * [-1.0 / num_steps], dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Ode:
  """A policy's flow at one batch of observations."""

  run: Callable[..., Array]  # (x_BTA, first=, last=, correct=) -> x_BTA, normalized and padded; see `euler`
  start_BTA: Array  # where the run of the policy's own chunk starts
  num_steps: int
  to_model: Callable[[Array], Array]  # the robot's units to normalized, padded with zeros; float[..., T, A]
  to_robot: Callable[[Array], Array]
