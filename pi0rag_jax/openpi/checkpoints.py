"""openpi checkpoints on disk: read into plain nested dicts, written so that openpi restores them.

A checkpoint is a directory with `params/` (an Orbax PyTree item, `{"params": tree}`), or with `model.safetensors` from
openpi's PyTorch port, and `assets/<asset>/`; a `train_state/` beside them is left alone. A gs:// address stands for the
directory wherever a path is taken to read from. `params/` written here carries digests, which loading checks.
"""

import logging
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from pi0rag_jax import files
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi import digests, download, npz_source, orbax_source, sources, torch_source
from pi0rag_jax.openpi.norm_stats import load_norm_stats, save_norm_stats
from pi0rag_jax.typing import Params

__all__ = ["check_template", "load_norm_stats", "load_params", "load_partial", "save_checkpoint", "save_norm_stats",
           "save_params", "stored"]

PARAMS_DIR = "params"
# Which parameters of a model a checkpoint may lack, by their '/'-joined paths: as in openpi's weight loaders.
LORA = ".*lora.*"
ANY = ".*"
VISION_QUERY = "PaliGemma/img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel"
# What a pi0-FAST lacks beside a flow model, and what both have.
ACTION_HEAD = "action_out_proj/kernel"
EMBEDDING = "PaliGemma/llm/embedder/input_embedding"
SHOWN_MISMATCHES = 8

logger = logging.getLogger(__name__)


def load_params(path, *, dtype=None, template=None, placement=None, drop_extra: bool = False) -> Params:
  """Returns a checkpoint's parameters as a nested dict of arrays, in openpi's tree.

  Arrays are cast and placed one after the other while they are read: the peak of host memory is about the result's
  size plus the stored size of the largest array.

  Args:
    path: the checkpoint directory, the `params` directory within it, a model.safetensors or PaliGemma's .npz, local or
      at a gs:// address (then downloaded to openpi's cache, once).
    dtype: what floating arrays are cast to (openpi serves in bfloat16); None keeps what is stored.
    template: a tree of arrays or `jax.ShapeDtypeStruct`; paths and shapes must be equal to it.
    placement: None for numpy arrays; else a device, a sharding, or a tree of them like the parameters'.
    drop_extra: leaves out arrays that the template lacks, as openpi does, with a warning; adapters never.
  Raises:
    Pi0RagError: the checkpoint is missing, of another kind or damaged, or it does not match the template.
  """
  wanted = None if template is None else traverse_util.flatten_dict(template, sep="/")
  source = _open_source(path, wanted or {})
  shapes = source.shapes
  if wanted is not None:
    shapes = _without_extra(source, wanted) if drop_extra else shapes
    check_template(traverse_util.unflatten_dict(dict(shapes), sep="/"), template, source=source.name)
  dtypes = {name: sources.cast_dtype(shape.dtype, dtype) for name, shape in shapes.items()}
  return traverse_util.unflatten_dict(sources.read_arrays(source, dtypes, placement), sep="/")


def load_partial(path, init: Callable[[jax.Array], Params], key: jax.Array, *, fresh: str = LORA, dtype=None,
                 placement=None) -> Params:
  """Returns the parameters of a model that starts from a checkpoint which has only some of them.

  Arrays of the checkpoint that the model lacks are left out with a warning, adapters excepted.

  Args:
    path: as for `load_params`; PaliGemma's weights go with `fresh=ANY`.
    init: makes all of the model's parameters from a key; only the missing ones are computed.
    key: for `init`.
    fresh: regular expression that the whole '/'-joined path of every missing parameter must match.
    dtype: what floating arrays are cast to; None stands for the types that `init` gives.
    placement: as for `load_params`.
  Raises:
    Pi0RagError: as for `load_params`; a parameter is missing that `fresh` does not cover.
  """
  wanted = traverse_util.flatten_dict(jax.eval_shape(init, key), sep="/")
  source = _open_source(path, wanted)
  shapes = _without_extra(source, wanted)
  missing = sorted(wanted.keys() - shapes.keys())
  covered = {name: wanted[name] for name in missing if re.fullmatch(fresh, name)}
  check_template(traverse_util.unflatten_dict({**shapes, **covered}, sep="/"),
                 traverse_util.unflatten_dict(wanted, sep="/"), source=source.name)
  if not shapes:
    raise Pi0RagError(f"{source.name} has none of the model's parameters; it has {_listed(source.shapes)}")
  dtypes = {name: sources.cast_dtype(shape.dtype, dtype) for name, shape in wanted.items()}
  flat = sources.read_arrays(source, {name: dtypes[name] for name in shapes}, placement)
  for name, array in _fresh_arrays(init, key, missing).items():
    flat[name] = sources.place(np.asarray(array.astype(dtypes[name])), name, placement)
  return traverse_util.unflatten_dict(flat, sep="/")


def save_params(path, params: Params) -> None:
  """Writes the `params` directory of a checkpoint; it appears whole or not at all.

  Args:
    path: the checkpoint directory, or the `params` directory within it, as for `load_params`.
    params: nested dict of arrays.
  Raises:
    Pi0RagError: the `params` directory exists.
  """
  directory = pathlib.Path(os.path.expanduser(path)).absolute()
  directory = directory if directory.name == PARAMS_DIR else directory / PARAMS_DIR
  if directory.exists():
    raise Pi0RagError(f"{directory} exists: remove it first, or save under another name")
  draft = directory.with_name(f"{PARAMS_DIR}.partial")
  shutil.rmtree(draft, ignore_errors=True)
  orbax_source.write(draft, params)
  digests.write(draft)
  draft.rename(directory)
  files.sync(directory.parent)


def save_checkpoint(path, params: Params, stats: Mapping[str, Mapping]) -> None:
  """Writes a checkpoint directory that openpi serves and fine-tunes from; it appears whole or not at all.

  Args:
    path: the directory, which must not exist.
    params: nested dict of arrays.
    stats: asset id -> statistics, as for `save_norm_stats`.
  Raises:
    Pi0RagError: the directory exists.
  """
  directory = pathlib.Path(os.path.expanduser(path)).absolute()
  if directory.exists():
    raise Pi0RagError(f"{directory} exists: remove it first, or save under another name")
  draft = directory.with_name(directory.name + ".partial")
  shutil.rmtree(draft, ignore_errors=True)
  save_params(draft, params)
  for asset_id, groups in stats.items():
    save_norm_stats(draft, asset_id, groups)
  draft.rename(directory)


def check_template(params: Params, template, *, source: str) -> None:
  """Raises Pi0RagError naming the first paths where tree or shapes differ from the template's."""
  seen = {key: tuple(array.shape) for key, array in traverse_util.flatten_dict(params, sep="/").items()}
  wanted = {key: tuple(array.shape) for key, array in traverse_util.flatten_dict(template, sep="/").items()}
  missing = [f"missing {key} {wanted[key]}" for key in sorted(wanted.keys() - seen.keys())]
  unexpected = [f"unexpected {key} {seen[key]}" for key in sorted(seen.keys() - wanted.keys())]
  problems = sources.both_kinds(missing, unexpected)
  problems += [
    f"{key} is {seen[key]}, the model wants {wanted[key]}"
    for key in sorted(seen.keys() & wanted.keys()) if seen[key] != wanted[key]
  ]
  if problems:
    shown = "\n  ".join(problems[:SHOWN_MISMATCHES])
    raise Pi0RagError(
      f"{source} does not fit the model, {len(problems)} arrays differ; the first:\n  {shown}\n"
      "Check the model's configuration against the one that the checkpoint was trained with.")


def stored(path) -> sources.Source:
  """Returns the arrays of a checkpoint as they are stored: names, shapes and types, of which no array has been read.

  Digests are not checked, since that reads everything. Errors: Pi0RagError as of `load_params`.
  """
  return _open_source(path, {}, checked=False)


def _open_source(path, wanted: Mapping, *, checked: bool = True) -> sources.Source:
  """Returns the reader for what is at `path`, or says what is there instead."""
  path = download.local_checkpoint(path).resolve()  # tensorstore takes no ".."
  if path.is_file() and path.suffix == ".npz":
    return npz_source.NpzSource(path)
  file = path if path.is_file() and path.suffix == ".safetensors" else path / torch_source.FILE_NAME
  # As in openpi, a directory with both is taken as the PyTorch port.
  if file.is_file():
    vision_heads = wanted[VISION_QUERY].shape[-2] if VISION_QUERY in wanted else torch_source.VISION_HEADS
    return torch_source.TorchSource(file, vision_heads=vision_heads)
  if not path.is_dir():
    raise Pi0RagError(f"no checkpoint directory at {path}")
  for candidate in (path / PARAMS_DIR, path):
    if (candidate / "_METADATA").is_file() or (candidate / digests.FILE_NAME).is_file():
      if checked:
        digests.check(candidate)
      return orbax_source.OrbaxSource(candidate)
  raise _foreign_directory(path)


def _foreign_directory(path: pathlib.Path) -> Pi0RagError:
  """Returns the error for a directory that is no checkpoint."""
  names = sorted(p.name for p in path.iterdir())
  steps = sorted(int(name) for name in names if name.isdigit())
  if steps:
    return Pi0RagError(
      f"{path} holds checkpoints, steps {_listed(steps)}: give one of them, such as {path / str(steps[-1])}")
  return Pi0RagError(
    f"{path} is no openpi checkpoint: expected params/ with an Orbax _METADATA file, or {torch_source.FILE_NAME}, "
    f"found {_listed(names)}. A name that ends in .orbax-checkpoint-tmp is a save that never finished.")


def _without_extra(source: sources.Source, wanted: Mapping) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of the arrays that the model has, and warns of the others."""
  extra = sorted(source.shapes.keys() - wanted.keys())
  if ACTION_HEAD in extra and EMBEDDING in wanted:
    raise Pi0RagError(f"{source.name} has {ACTION_HEAD}: it is of pi0 or pi0.5, the model is a pi0-FAST")
  adapters = [name for name in extra if re.fullmatch(LORA, name)]
  if adapters:
    raise Pi0RagError(f"{source.name} has {len(adapters)} LoRA arrays that the model lacks, such as {adapters[0]}: "
                      "use a LoRA configuration; without its adapters this is not the model that was trained")
  if extra:
    logger.warning("%s: left out %d arrays that the model lacks: %s", source.name, len(extra), _listed(extra))
  return {name: shape for name, shape in source.shapes.items() if name in wanted}


def _fresh_arrays(init: Callable[[jax.Array], Params], key: jax.Array, names: list[str]) -> dict[str, jax.Array]:
  """Returns some of a model's fresh parameters; as one program, of which the compiler drops all the others."""
  if not names:
    return {}

  def some(key):
    flat = traverse_util.flatten_dict(init(key), sep="/")
    return {name: jnp.asarray(flat[name]) for name in names}

  return jax.jit(some)(key)


def _listed(names) -> str:
  """Returns the first of some names in one line."""
  names = list(map(str, names))
  more = f" and {len(names) - SHOWN_MISMATCHES} more" if len(names) > SHOWN_MISMATCHES else ""
  return (", ".join(names[:SHOWN_MISMATCHES]) or "nothing") + more
