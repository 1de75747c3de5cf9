"""Which parameters train: a tree is split into a trainable and a frozen one, and put together again.

A frozen tree is an argument of its own, so that nothing of it is differentiated, averaged or kept by the optimizer.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.typing import Params

SEPARATOR = "/"


def split(params: Params, is_trainable: Callable[[str], bool]) -> tuple[Params, Params]:
  """Returns (trainable, frozen): nested dicts of the leaves whose '/'-joined path is trainable, and of the others.

  Raises:
    Pi0RagError: nothing is left to train.
  """
  flat = traverse_util.flatten_dict(params, sep=SEPARATOR)
  chosen = {path: leaf for path, leaf in flat.items() if is_trainable(path)}
  if not chosen:
    raise Pi0RagError(f"none of the {len(flat)} parameters is trainable: the freeze rule leaves nothing to train")
  frozen = {path: leaf for path, leaf in flat.items() if path not in chosen}
  return traverse_util.unflatten_dict(chosen, sep=SEPARATOR), traverse_util.unflatten_dict(frozen, sep=SEPARATOR)


def join(trainable: Params, frozen: Params) -> Params:
  """Returns the whole tree of two parts made by `split`."""
  flat = traverse_util.flatten_dict(trainable, sep=SEPARATOR) | traverse_util.flatten_dict(frozen, sep=SEPARATOR)
  return traverse_util.unflatten_dict(flat, sep=SEPARATOR)


def take(params: Params, like: Params) -> Params:
  """Returns the leaves of `params` at the paths of `like`, in its dtypes."""
  flat = traverse_util.flatten_dict(params, sep=SEPARATOR)
  wanted = traverse_util.flatten_dict(like, sep=SEPARATOR)
  chosen = {path: np.asarray(flat[path], leaf.dtype) for path, leaf in wanted.items()}
  return traverse_util.unflatten_dict(chosen, sep=SEPARATOR)


def cast(params: Params, dtype) -> Params:
  """Returns the tree with its floating leaves in `dtype`: openpi keeps what is frozen in bfloat16."""
  return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, params)
