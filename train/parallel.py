"""Data parallelism: one `pmap`, the batch split over the devices, the state one plain tree without a device axis."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pi0rag_jax.errors import Pi0RagError

AXIS = "batch"


def compile_step(step: Callable, *, donate_state: bool) -> Callable:
  """Returns `step(state, batch)` compiled for every device.

  Args:
    step: pure; gets the whole state and its device's part of the batch; must average over `AXIS` itself.
    donate_state: the state passed in is given up, as training does and validation must not.
  """
  donated = (0,) if donate_state else ()
  compiled = jax.pmap(step, axis_name=AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=donated)
  if jax.default_backend() != "cpu" or jax.local_device_count() == 1:
    return compiled
  # Forced host devices share one thread pool: two steps in flight starve each other's collectives for ever.
  return lambda state, batch: jax.block_until_ready(compiled(state, batch))


def replicate(tree):
  """Returns the tree with a copy of every array on each device and no stacked axis."""
  sharding = NamedSharding(Mesh(np.asarray(jax.devices()), (AXIS,)), PartitionSpec())
  return jax.device_put(tree, sharding)


def split_batch(batch):
  """Returns the arrays [B, ...] of this process as [local devices, B / local devices, ...]."""
  count = jax.local_device_count()
  return jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), batch)


def local_rows(rows):
  """Returns the part of the global batch's rows that this process feeds to its devices."""
  share = len(rows) // jax.process_count()
  return rows[jax.process_index() * share : (jax.process_index() + 1) * share]


def check_batch_size(batch_size: int) -> None:
  """Raises if the devices cannot share the batch equally."""
  if batch_size < 1 or batch_size % jax.device_count():
    raise Pi0RagError(f"batch_size {batch_size} must be a multiple of the {jax.device_count()} devices")


def example_indices(local_batch: int):
  """Returns int[B], the places of this device's examples in the global batch; only inside a step."""
  return jax.lax.axis_index(AXIS) * local_batch + jnp.arange(local_batch)


def mean_over_devices(tree):
  """Returns the tree averaged over all devices; only inside a step."""
  return jax.lax.pmean(tree, AXIS)
