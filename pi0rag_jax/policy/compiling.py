"""How the programs of a policy are compiled, and where the next process finds them."""

import collections
import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.typing import Params

# This pass moves what a loop converts before it, see `converts`.
_WITHOUT_HOISTING = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
UNSPLIT = {"xla_disable_hlo_passes": "cpu-parallel-task-assigner"}
# Compute capability from which on a GPU multiplies such matrices as they are stored; int8 is converted first by any.
_PRODUCTS = {"int8": (0, 0), "fp8": (8, 9), "bfloat16": (8, 0)}
_CUDNN_HEAD_DIM = 128  # up to Ampere and Ada; wider heads came with Hopper
# The folder of compiled programs; empty: none is kept. jax's own JAX_COMPILATION_CACHE_DIR comes before it.
CACHE_VARIABLE = "PI0RAG_JAX_XLA_CACHE"
# What jax reports of each program that it has to have, and of each that it finds on disk.
_COMPILED, _FOUND = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"

logger = logging.getLogger(__name__)


def converts(params: Params) -> bool:
  """Returns whether the backend converts these parameters before it multiplies them: a CPU bfloat16 to float32.

  Of a 3.2 B pi0 with 6.5 GB of weights the copies take 10.9 GB if they are all made first, which XLA does wherever
  layers are not scanned, and 0.6 GB one layer after the other.
  """
  return jax.default_backend() == "cpu" and any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))


def aligns() -> bool:
  """Returns whether the backend is faster with what the flow's loop reads padded and joined, see PaliGemmaConfig."""
  return jax.default_backend() != "cpu"


def check_attention(model: PaliGemmaConfig, *, compute_capability: str | None) -> None:
  """Raises Pi0RagError for cuDNN's attention on a device that has none for this model.

  Args:
    compute_capability: of an NVIDIA GPU, as '9.0'; None of another device.
  """
  if model.attention_kernel != "cudnn":
    return
  widest = max(model.paligemma.head_dim, model.siglip.width // model.siglip.num_heads)
  needed = (8, 0) if widest <= _CUDNN_HEAD_DIM else (9, 0)
  if compute_capability is None or tuple(map(int, compute_capability.split("."))) < needed:
    seen = "no NVIDIA GPU" if compute_capability is None else f"one of compute capability {compute_capability}"
    raise Pi0RagError(f"attention_kernel 'cudnn' with heads of {widest} needs a GPU of compute capability {needed[0]}."
                      f"{needed[1]} or more, this is {seen}: use 'xla'")
  if model.dtype != "bfloat16":
    raise Pi0RagError(f"attention_kernel 'cudnn' needs a model in bfloat16, this one is in {model.dtype}: use 'xla'")


def check_layout(model: PaliGemmaConfig, weights: str | None) -> None:
  """Raises Pi0RagError where this device has no such attention, and warns where it is slower with such weights."""
  capability = getattr(jax.devices()[0], "compute_capability", None)
  check_attention(model, compute_capability=capability)
  if weights == "w8a8":  # more kernels than bfloat16 has take longer than the products gain, see docs/speed.md
    logger.warning("w8a8 weights take less memory, but no device is known to be faster with them")
  if weights in _PRODUCTS and (capability is None or tuple(map(int, capability.split("."))) < _PRODUCTS[weights]):
    logger.warning("%s weights take less memory, but only an NVIDIA GPU%s is faster with them; this is a %s", weights,
                   " of compute capability 8.9 or more" * (weights == "fp8"),
                   jax.default_backend() if capability is None else f"GPU of compute capability {capability}")


def options(params: Params) -> dict[str, str]:
  """Returns the `compiler_options` of `jax.jit` for a program that runs these parameters."""
  return dict(_WITHOUT_HOISTING) if converts(params) else {}


def on_leaves(function: Callable, tree) -> Callable:
  """Returns the function of (leaves, *inputs) that `function` is of (params, *inputs), `tree` being the parameters'.

  For a program that is called often: of the host's time for a call with the 560 arrays of a packed pi0, a quarter goes
  to the dictionaries that hold them.
  """
  return lambda leaves, *inputs: function(jax.tree.unflatten(tree, leaves), *inputs)


def bound(function: Callable, params: Params) -> Callable:
  """Returns the compiled function of (*inputs) that `function` is of (params, *inputs)."""
  leaves, tree = jax.tree.flatten(params)
  return functools.partial(jax.jit(on_leaves(function, tree), compiler_options=options(params)), leaves)


def in_one_thread(function: Callable) -> Callable:
  """Returns the compiled function, none of whose operations is split over a CPU's threads.

  For a program of operations of some 10 us: to wake a thread takes as long.
  """
  return jax.jit(function, compiler_options=dict(UNSPLIT) if jax.default_backend() == "cpu" else None)


@dataclasses.dataclass
class Programs:
  """How many programs were needed, and how many of them were on disk."""

  needed: int = 0
  found: int = 0


@contextlib.contextmanager
def counted() -> Iterator[Programs]:
  """Yields what this process compiles while the block runs; the numbers are there at its end."""
  programs, before = Programs(), _events().copy()
  yield programs
  new = _events() - before
  programs.needed, programs.found = new[_COMPILED], new[_FOUND]


@functools.cache
def _events() -> collections.Counter[str]:
  """Returns how often jax reported each event since the first call."""
  seen: collections.Counter[str] = collections.Counter()
  jax.monitoring.register_event_listener(lambda event, **_: seen.update([event]))
  jax.monitoring.register_event_duration_secs_listener(lambda event, duration_secs, **_: seen.update([event]))
  return seen


def keep_programs() -> pathlib.Path | None:
  """Has jax keep what it compiles for the next process, in one folder for all of them; None where none is kept.

  It is for commands, before they compile anything. jax tells programs apart by the machine's instructions, its own
  version and all else that counts. The folder may be deleted at any time; whoever writes to it may run code here.
  """
  if jax.config.jax_compilation_cache_dir:  # the user's, by jax's own variable
    return pathlib.Path(jax.config.jax_compilation_cache_dir)
  folder = _cache_directory()
  if folder is None:
    return None
  try:
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
  except OSError as error:
    logger.warning("compiled programs are not kept: cannot write to %s (%s); %s names another folder", folder,
                   error.strerror, CACHE_VARIABLE)
    return None
  jax.config.update("jax_compilation_cache_dir", str(folder))
  # By default only what takes a second is kept, and many a small program comes before the first action.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  return folder


def _cache_directory() -> pathlib.Path | None:
  """Returns the folder of compiled programs, absolute; None for none."""
  chosen = os.environ.get(CACHE_VARIABLE)
  if chosen is None:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(home, "pi0rag_jax", "xla").expanduser().absolute()
  return pathlib.Path(chosen).expanduser().absolute() if chosen else None
