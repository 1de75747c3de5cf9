"""How steps run on many devices, in two ways with one interface.

`Replicated`: one `pmap`, the batch split over the devices, each of which has a copy of the state; for adapters, heads
and small models. `Sharded`: one `jit`, state and batch split over the devices (FSDP); for training all of a large
model. A step never asks which: it averages with the `mean` that it is given, and an example's draws follow from its
`index` in the batch.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.models import placement

AXIS = placement.BATCH
# openpi's: smaller arrays stay whole on every device.
MIN_SHARDED_BYTES = 4 * 2**20


class Replicated:
  """Data parallelism by `pmap`, with state and frozen parameters one plain tree without a device axis."""

  def __init__(self, devices: Sequence[Any] | None = None):
    """Takes the devices of all processes; None are those that there are."""
    self._mesh = _mesh(devices)
    self._sharding = NamedSharding(self._mesh, PartitionSpec())

  def compile_train(self, step: Callable) -> Callable:
    """Returns `step(state, frozen, batch)` for every device; the state passed in is given up."""
    return self._compile(step, donated=(0,))

  def compile_validation(self, step: Callable) -> Callable:
    """Returns `step(params, frozen, batch)` for every device."""
    return self._compile(step, donated=())

  def _compile(self, step: Callable, *, donated: tuple[int, ...]) -> Callable:
    compiled = jax.pmap(step, axis_name=AXIS, in_axes=(None, None, 0), out_axes=None, donate_argnums=donated,
                        devices=list(self._mesh.devices.flat))
    return _OneAtATime(compiled, self._mesh)

  def place(self, tree):
    """Returns the tree with a copy of every array on each device and no stacked axis."""
    return jax.device_put(tree, self._sharding)

  def create(self, make: Callable, *args):
    """Returns the tree `make(*args)`, made on every device."""
    return jax.jit(make, out_shardings=self._sharding)(*args)

  def place_batch(self, batch):
    """Returns the arrays [B, ...] of this process as [local devices, B / local devices, ...]."""
    return jax.tree.map(functools.partial(_stacked, count=len(self._mesh.local_devices)), batch)

  def mean(self, tree):
    """Returns the tree averaged over all devices; only inside a step."""
    return jax.lax.pmean(tree, AXIS)

  def shapes(self, tree):
    """Returns the shapes of a tree as `place` lays it out, to compile with."""
    return _shapes(tree, lambda x: self._sharding)

  def batch_shapes(self, batch):
    """Returns the shapes of a global batch as `place_batch` lays it out."""
    stacked = jax.tree.map(lambda x: jax.eval_shape(functools.partial(_stacked, count=self._mesh.size), x), batch)
    return _shapes(stacked, lambda x: NamedSharding(self._mesh, PartitionSpec(AXIS)))


class Sharded:
  """FSDP by `jit`: every large array of state and frozen parameters is split over the devices, as the batch is.

  In the layers every device computes its own examples alone, with weights that it gathers as it goes.
  """

  def __init__(self, devices: Sequence[Any] | None = None, *, min_bytes: int = MIN_SHARDED_BYTES):
    """Takes the devices of all processes; None are those that there are."""
    self._mesh = _mesh(devices)
    self._min_bytes = min_bytes

  def compile_train(self, step: Callable) -> Callable:
    """Returns `step(state, frozen, batch)` over all devices; the state passed in is given up and keeps its layout."""

    def pinned(state, frozen, batch):
      next_state, metrics = self._by_example(step)(state, frozen, batch)
      layout = jax.tree.map(self._sharding, next_state)
      return jax.lax.with_sharding_constraint(next_state, layout), metrics

    return _OneAtATime(jax.jit(pinned, donate_argnums=0), self._mesh)

  def compile_validation(self, step: Callable) -> Callable:
    """Returns `step(params, frozen, batch)` over all devices."""
    return _OneAtATime(jax.jit(self._by_example(step)), self._mesh)

  def _by_example(self, step: Callable) -> Callable:
    """Returns the step whose models know the mesh, see `placement.by_example`."""

    def in_mesh(*args):
      with jax.sharding.use_abstract_mesh(self._mesh.abstract_mesh):
        return step(*args)

    return in_mesh

  def place(self, tree):
    """Returns the tree with its arrays split over the devices along their largest divisible axis."""
    return jax.device_put(tree, jax.tree.map(self._sharding, tree))

  def create(self, make: Callable, *args):
    """Returns the tree `make(*args)`, made in its parts: the whole may be more than one device holds."""
    layout = jax.tree.map(self._sharding, jax.eval_shape(make, *args))
    return jax.jit(make, out_shardings=layout)(*args)

  def place_batch(self, batch):
    """Returns this process's arrays [B, ...] as parts of global ones."""
    return _global(batch, self._mesh)

  def mean(self, tree):
    """Returns the tree: under `jit` a batch is the global one, and means are over all of it."""
    return tree

  def shapes(self, tree):
    """Returns the shapes of a tree as `place` lays it out, to compile with."""
    return _shapes(tree, self._sharding)

  def batch_shapes(self, batch):
    """Returns the shapes of a global batch as `place_batch` lays it out."""
    return _shapes(batch, lambda x: NamedSharding(self._mesh, PartitionSpec(AXIS)))

  def _sharding(self, array) -> NamedSharding:
    """Returns where an array's parts go."""
    spec = [None] * array.ndim
    count = self._mesh.size
    axes = [axis for axis in range(array.ndim) if array.shape[axis] % count == 0]
    if axes and array.size * array.dtype.itemsize >= self._min_bytes:
      spec[max(axes, key=lambda axis: array.shape[axis])] = AXIS
    return NamedSharding(self._mesh, PartitionSpec(*spec))


@contextlib.contextmanager
def programs_released() -> Iterator[None]:
  """Frees the programs compiled within the block.

  `pmap` keeps its own for as long as the process lives, 60 MB each of a small policy: a search over a grid would fill
  the memory.
  """
  try:
    yield
  finally:
    jax.clear_caches()


KINDS = {"pmap": Replicated, "fsdp": Sharded}


def make(name: str) -> Replicated | Sharded:
  """Returns the way of running steps that a configuration's `parallel` names."""
  if name not in KINDS:
    raise unknown_name("parallel", name, KINDS)
  return KINDS[name]()


def local_rows(rows):
  """Returns the part of the global batch's rows that this process feeds to its devices."""
  share = len(rows) // jax.process_count()
  return rows[jax.process_index() * share : (jax.process_index() + 1) * share]


def check_batch_size(batch_size: int, microbatches: int = 1) -> None:
  """Raises if the devices cannot share the batch, and each its part, equally."""
  parts = jax.device_count() * microbatches
  if microbatches < 1 or batch_size < 1 or batch_size % parts:
    each = f" times {microbatches} microbatches" if microbatches != 1 else ""
    raise Pi0RagError(f"batch_size {batch_size} must be a multiple of the {jax.device_count()} devices{each}")


def is_first() -> bool:
  """Returns whether this process is the one that writes."""
  return jax.process_index() == 0


def wait_for_all(name: str) -> None:
  """Returns once every process has come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def fetch(tree):
  """Returns numpy arrays of the whole tree, also where parts of it are on other hosts: call it on all of them."""
  whole = jax.jit(lambda x: x, out_shardings=NamedSharding(_mesh(), PartitionSpec()))

  def one(x):
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
      return np.asarray(x)
    return np.asarray((x if x.is_fully_replicated else whole(x)).addressable_data(0))

  return jax.tree.map(one, tree)


def _mesh(devices: Sequence[Any] | None = None) -> Mesh:
  return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def _stacked(x, count: int):
  """Returns an array [B, ...] as [count, B / count, ...]."""
  return x.reshape(count, x.shape[0] // count, *x.shape[1:])


def _global(batch, mesh: Mesh):
  """Returns this process's arrays as parts of global ones, split along their first axis."""
  layout = NamedSharding(mesh, PartitionSpec(AXIS))
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(layout, np.asarray(x)), batch)


def _shapes(tree, sharding: Callable):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x)), tree)


@dataclasses.dataclass(frozen=True)
class _OneAtATime:
  """A compiled step that waits for its end where forced host devices share one thread pool.

  There two steps in flight starve each other's collectives for ever.
  """

  compiled: Any
  mesh: Mesh

  def __call__(self, *args):
    done = self.compiled(*args)
    shared = self.mesh.devices.flat[0].platform == "cpu" and len(self.mesh.local_devices) > 1
    return jax.block_until_ready(done) if shared else done

  def lower(self, *args):
    """Returns what `jax.jit` does, for those who compile a step that they do not run."""
    return self.compiled.lower(*args)


def draw_keys(rng, index_B):
  """Returns one key per example, from its place in the global batch: the same however the batch is split."""
  return jax.vmap(lambda index: jax.random.fold_in(rng, index))(jnp.asarray(index_B))
