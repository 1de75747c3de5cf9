"""Small networks that are fitted to a memory's records, for rules that ask them instead of neighbours.

A network is a dictionary of arrays: `mean_I` and `scale_I` of its inputs, `kernel_<n>` and `bias_<n>` of its layers.
Letters beyond the project's key: `I` and `O` are what a network takes and gives.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pi0rag_jax.steering.paths import EXACT
from pi0rag_jax.typing import Array

# FlowDAgger's published recipe for MetaWorld: two hidden layers, batches and steps for each episode of the stream.
HIDDEN, BATCH_SIZE, STEPS_PER_EPISODE, LEARNING_RATE = (256, 256), 256, 100, 1e-4
# At first a network asks for next to nothing.
_LAST_SCALE = 1e-2
_LEAST_SPREAD = 1e-6  # of an input that never changes

Network = Mapping[str, Array]


def apply(network: Network, inputs_BI):
  """Returns the outputs float32[B, O]; pure."""
  x = (inputs_BI - network["mean_I"]) * network["scale_I"]
  last = len(HIDDEN)
  for layer in range(last):
    x = jax.nn.relu(jnp.matmul(x, network[f"kernel_{layer}"], precision=EXACT) + network[f"bias_{layer}"])
  return jnp.matmul(x, network[f"kernel_{last}"], precision=EXACT) + network[f"bias_{last}"]


def fit(inputs_NI: Array, targets_NO: Array, *, steps: int, seed: int,
        squash: Callable[[Array], Array] = lambda outputs: outputs) -> tuple[dict[str, np.ndarray], float]:
  """Returns (a network, its mean squared error over all rows), the same for the same rows and seed.

  Args:
    steps: of Adam, each on BATCH_SIZE rows that are drawn anew.
    squash: of the outputs, before they are compared with the targets.
  """
  inputs_NI, targets_NO = np.asarray(inputs_NI, np.float32), np.asarray(targets_NO, np.float32)
  first, rest = jax.random.split(jax.random.key(seed))
  network = _fresh(first, inputs_NI, targets_NO.shape[1])
  network = _trained(network, inputs_NI, targets_NO, rest, steps, squash)
  error = float(_error(network, inputs_NI, targets_NO, squash))
  return {name: np.asarray(array) for name, array in network.items()}, error


def _fresh(rng, inputs_NI: np.ndarray, outputs: int) -> dict[str, Array]:
  network: dict[str, Array] = {"mean_I": jnp.asarray(inputs_NI.mean(axis=0)),
                               "scale_I": jnp.asarray(1.0 / np.maximum(inputs_NI.std(axis=0), _LEAST_SPREAD))}
  sizes = (inputs_NI.shape[1], *HIDDEN, outputs)
  for layer, (width, after) in enumerate(itertools.pairwise(sizes)):
    scale = _LAST_SCALE if layer == len(HIDDEN) else 2**0.5
    network[f"kernel_{layer}"] = jax.nn.initializers.orthogonal(scale)(jax.random.fold_in(rng, layer), (width, after))
    network[f"bias_{layer}"] = jnp.zeros(after)
  return network


def _error(network: Network, inputs_BI, targets_BO, squash):
  return jnp.square(squash(apply(network, inputs_BI)) - targets_BO).mean()


@functools.partial(jax.jit, static_argnames=("steps", "squash"))
def _trained(network, inputs_NI, targets_NO, rng, steps: int, squash):
  optimizer = optax.adam(LEARNING_RATE)
  statistics = {name: network[name] for name in ("mean_I", "scale_I")}
  layers = {name: array for name, array in network.items() if name not in statistics}

  def step(state, number):
    layers, moments = state
    rows_B = jax.random.randint(jax.random.fold_in(rng, number), (BATCH_SIZE,), 0, len(inputs_NI))
    loss = lambda layers: _error(statistics | layers, inputs_NI[rows_B], targets_NO[rows_B], squash)  # noqa: E731
    updates, moments = optimizer.update(jax.grad(loss)(layers), moments)
    return (cast(dict, optax.apply_updates(layers, updates)), moments), None

  (layers, _), _ = jax.lax.scan(step, (layers, optimizer.init(layers)), jnp.arange(steps))
  return statistics | layers
