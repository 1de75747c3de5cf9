"""Weights of torchvision's mobilenet_v3_small for the light encoder's trunk.

Facts: the names and layouts of that network's state dict. `features.0` is the stem, `features.1` to `.11` are the
blocks and `features.12` is the last convolution; convolutions are [out, in / groups, height, width]. The classifier is
left out. Tensors come from the caller, for instance out of a safetensors file.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.backbones.mobilenet import BLOCKS, STEM_CHANNELS
from pi0rag_jax.typing import Params

# What a trunk has no use for.
_UNUSED = ("classifier.", "num_batches_tracked")
_NORM = {"weight": ("params", "scale"), "bias": ("params", "bias"),
         "running_mean": ("batch_stats", "mean"), "running_var": ("batch_stats", "var")}


def with_trunk(params: Params, tensors: Mapping[str, np.ndarray]) -> Params:
  """Returns the light encoder's parameters with torchvision's weights as the trunk, everything else as it was.

  Args:
    params: of `LightBackbone.init`: `params` and `batch_stats`.
    tensors: the state dict, as arrays by name.
  Raises:
    Pi0RagError: tensors are missing, unknown or of another shape.
  """
  flat: dict[str, Any] = dict(traverse_util.flatten_dict(params, sep="/"))
  names = dict(tensor_names())
  given = {name for name in tensors if not any(part in name for part in _UNUSED)}
  if given != set(names):
    missing, unknown = sorted(set(names) - given), sorted(given - set(names))
    raise Pi0RagError("not the state dict of torchvision's mobilenet_v3_small: "
                      f"missing {missing[:3]} of {len(missing)}, unknown {unknown[:3]} of {len(unknown)}")
  for name, path in names.items():
    array = _layout(np.asarray(tensors[name], np.float32), path)
    if array.shape != flat[path].shape:
      raise Pi0RagError(f"{name} becomes {array.shape}, the trunk takes {flat[path].shape} at {path}")
    flat[path] = array
  return traverse_util.unflatten_dict(flat, sep="/")


def tensor_names() -> Iterator[tuple[str, str]]:
  """Yields (torchvision's name, '/'-joined path in the light encoder's parameters) of every tensor of the trunk."""
  yield from _conv_norm("features.0", "stem")
  channels = STEM_CHANNELS
  for i, block in enumerate(BLOCKS):
    parts = ["expand"] if block.expanded != channels else []
    parts += ["depthwise"] + (["squeeze"] if block.squeeze else []) + ["project"]
    for j, part in enumerate(parts):
      names = _squeeze if part == "squeeze" else _conv_norm
      yield from names(f"features.{i + 1}.block.{j}", f"block_{i}/{part}")
    channels = block.out
  yield from _conv_norm(f"features.{len(BLOCKS) + 1}", "last")


def _conv_norm(name: str, at: str) -> Iterator[tuple[str, str]]:
  yield f"{name}.0.weight", f"params/trunk/{at}/conv/kernel"
  for theirs, (collection, ours) in _NORM.items():
    yield f"{name}.1.{theirs}", f"{collection}/trunk/{at}/norm/{ours}"


def _squeeze(name: str, at: str) -> Iterator[tuple[str, str]]:
  for layer in ("fc1", "fc2"):
    yield f"{name}.{layer}.weight", f"params/trunk/{at}/{layer}/kernel"
    yield f"{name}.{layer}.bias", f"params/trunk/{at}/{layer}/bias"


def _layout(array: np.ndarray, path: str) -> np.ndarray:
  """Returns a tensor in flax's layout."""
  if not path.endswith("kernel"):
    return array
  kernel = array.transpose(2, 3, 1, 0)
  return kernel if path.endswith("conv/kernel") else kernel[0, 0]
