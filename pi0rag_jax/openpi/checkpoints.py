"""openpi checkpoints on disk: read into plain nested dicts of numpy arrays, written so that openpi restores them.

A checkpoint is a directory with `params/` (an Orbax PyTree item, `{"params": tree}`) and `assets/<asset>/`.
"""

import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi.norm_stats import load_norm_stats, save_norm_stats
from pi0rag_jax.typing import Params

__all__ = ["check_template", "load_norm_stats", "load_params", "save_norm_stats", "save_params"]

PARAMS_DIR = "params"
# flax.nnx stores each array under one more key; openpi writes it, older checkpoints lack it.
VALUE_KEY = "value"
SHOWN_MISMATCHES = 8


def load_params(path, *, dtype=None, template=None) -> Params:
  """Returns a checkpoint's parameters as a nested dict of numpy arrays.

  Args:
    path: the checkpoint directory, or the `params` directory within it.
    dtype: what floating arrays are cast to; None keeps what is stored.
    template: a tree of arrays or `jax.ShapeDtypeStruct`; paths and shapes must be equal to it.
  Raises:
    Pi0RagError: the directory is missing, of another kind or damaged, or it does not match the template.
  """
  directory = _params_directory(pathlib.Path(path))
  stored = _read_tree(directory)
  if set(stored) != {PARAMS_DIR}:
    raise Pi0RagError(f"{directory}: expected one top-level key 'params', found {sorted(map(str, stored))}")
  flat = traverse_util.flatten_dict(stored[PARAMS_DIR])
  if flat and all(path[-1] == VALUE_KEY for path in flat):
    flat = {path[:-1]: array for path, array in flat.items()}
  params = traverse_util.unflatten_dict({path: _cast(array, dtype) for path, array in flat.items()})
  if template is not None:
    check_template(params, template, source=str(directory))
  return params


def save_params(path, params: Params) -> None:
  """Writes the `params` directory of a checkpoint; it appears whole or not at all.

  Args:
    path: the checkpoint directory, or the `params` directory within it, as for `load_params`.
    params: nested dict of arrays.
  Raises:
    Pi0RagError: the `params` directory exists.
  """
  directory = pathlib.Path(path).absolute()
  directory = directory if directory.name == PARAMS_DIR else directory / PARAMS_DIR
  if directory.exists():
    raise Pi0RagError(f"{directory} exists: remove it first, or save under another name")
  flat = traverse_util.flatten_dict(jax.device_get(params))
  tree = traverse_util.unflatten_dict({(*key, VALUE_KEY): np.asarray(array) for key, array in flat.items()})
  ocp.PyTreeCheckpointer().save(directory, {PARAMS_DIR: tree})


def check_template(params: Params, template, *, source: str) -> None:
  """Raises Pi0RagError naming the first paths where tree or shapes differ from the template's."""
  seen = {key: tuple(array.shape) for key, array in traverse_util.flatten_dict(params, sep="/").items()}
  wanted = {key: tuple(array.shape) for key, array in traverse_util.flatten_dict(template, sep="/").items()}
  problems = [f"missing {key} {wanted[key]}" for key in sorted(wanted.keys() - seen.keys())]
  problems += [f"unexpected {key} {seen[key]}" for key in sorted(seen.keys() - wanted.keys())]
  problems += [
    f"{key} is {seen[key]}, the model wants {wanted[key]}"
    for key in sorted(seen.keys() & wanted.keys()) if seen[key] != wanted[key]
  ]
  if problems:
    shown = "\n  ".join(problems[:SHOWN_MISMATCHES])
    raise Pi0RagError(
      f"{source} does not fit the model, {len(problems)} arrays differ; the first:\n  {shown}\n"
      "Check the model's configuration against the one that the checkpoint was trained with.")


def _params_directory(path: pathlib.Path) -> pathlib.Path:
  """Returns the absolute directory of the Orbax item, or says what `path` is instead."""
  path = path.absolute()
  if not path.is_dir():
    raise Pi0RagError(f"no checkpoint directory at {path}")
  for candidate in (path / PARAMS_DIR, path):
    if (candidate / "_METADATA").is_file():
      return candidate
  names = sorted(p.name for p in path.iterdir())
  if "model.safetensors" in names:
    raise Pi0RagError(f"{path} is a PyTorch port (model.safetensors); give the JAX checkpoint with params/")
  seen = ", ".join(names[:SHOWN_MISMATCHES]) or "nothing"
  raise Pi0RagError(
    f"{path} is no openpi checkpoint: expected params/ with an Orbax _METADATA file, found {seen}. "
    "A name that ends in .orbax-checkpoint-tmp is a save that never finished.")


def _read_tree(directory: pathlib.Path) -> dict:
  """Returns the stored tree as numpy arrays, whatever devices wrote it."""
  checkpointer = ocp.PyTreeCheckpointer()
  damaged = f"{directory} is damaged or was not copied whole"
  try:
    metadata = checkpointer.metadata(directory)
    # Orbax before 0.12 returned the item's metadata itself.
    item = getattr(metadata, "item_metadata", metadata)
    if item is None:
      raise Pi0RagError(f"{damaged}: Orbax finds no readable item in it; copy it again with all its files")
    tree = getattr(item, "tree", item)
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return checkpointer.restore(directory, args=ocp.args.PyTreeRestore(item=tree, restore_args=as_numpy))
  except (ValueError, KeyError, TypeError, OSError) as error:
    raise Pi0RagError(f"{damaged}: {str(error).splitlines()[0][:300]}") from error


def _cast(array, dtype) -> np.ndarray:
  """Returns the array in `dtype` where both are floating, else as it is."""
  if dtype is None or not jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
    return array
  return array.astype(jax.numpy.dtype(dtype))
