"""Where activations are while one program runs over many devices: examples stay apart, see `train.parallel`."""

import jax
from jax.sharding import AxisType, PartitionSpec

# Of a mesh, the axis over which the examples of a batch are spread.
BATCH = "batch"


def by_example(tree):
  """Returns the arrays [B, ...] with the rows of each device's own examples on it, where a mesh says what these are.

  Without it the compiler is free to follow the weights: every device then computes a part of the features of all
  examples, and sends them to all others, in each layer.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if dict(zip(mesh.axis_names, mesh.axis_types)).get(BATCH) != AxisType.Auto:
    return tree
  return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH)), tree)
