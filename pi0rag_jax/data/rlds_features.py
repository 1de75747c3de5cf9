"""What `features.json` of a TensorFlow data set says about its Examples, flattened to the names in the records."""

import dataclasses
import io
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pi0rag_jax.data.dataset import import_extra
from pi0rag_jax.errors import Pi0RagError


@dataclasses.dataclass(frozen=True)
class Feature:
  """One leaf of the tree of features."""

  kind: str  # tensor, text, image or other
  dtype: str = ""
  shape: tuple[int, ...] = ()  # -1 where it varies
  encoding: str = "none"  # of tensors: none, bytes or zlib

  @property
  def is_picture(self) -> bool:
    """Whether it is a camera's: encoded, or stored as plain numbers."""
    return self.kind == "image" or (self.dtype == "uint8" and len(self.shape) == 3 and self.shape[-1] == 3)

  def decode(self, values: np.ndarray | list[bytes], frames: int) -> Any:
    """Returns [frames, *shape] of a tensor, or a list of texts or of encoded pictures.

    Raises:
      ValueError: the record holds another number of values.
    """
    if self.kind != "tensor":
      if len(values) != frames:
        raise ValueError(f"{frames} frames need as many {self.kind}s, the record holds {len(values)}")
      return [value.decode("utf8") for value in values] if self.kind == "text" else values
    if isinstance(values, list):
      if self.dtype in ("string", "object"):
        return [value.decode("utf8") for value in values]
      unpack = zlib.decompress if self.encoding == "zlib" else bytes
      values = np.concatenate([np.frombuffer(unpack(value), _numpy_dtype(self.dtype)) for value in values])
    return values.astype(_numpy_dtype(self.dtype), copy=False).reshape(frames, *self.shape)

  def frames(self, values: np.ndarray | list[bytes]) -> int | None:
    """Returns for how many frames the values are, None where the shape does not tell."""
    if self.kind in ("text", "image") or isinstance(values, list):
      return len(values)
    size = int(np.prod(self.shape))
    return len(values) // size if size > 0 else None


def read_features(folder: Path) -> tuple[dict[str, Feature], dict[str, Feature]]:
  """Returns (features of a step, features of an episode), by their '/'-joined names.

  Raises:
    Pi0RagError: no features.json, or one without steps.
  """
  file = folder / "features.json"
  try:
    tree = _children(json.loads(file.read_text()))
    steps = tree.pop("steps")
    inner = steps["sequence"]["feature"] if "sequence" in steps else steps["dataset"]["feature"]
  except FileNotFoundError as error:
    raise Pi0RagError(f"the RLDS data set lacks '{file}', where the shapes are") from error
  except (ValueError, KeyError, TypeError) as error:
    raise Pi0RagError(f"'{file}' describes no RLDS data set (episodes of 'steps'): {error!r}") from error
  return _flatten(inner), {name: leaf for key, node in tree.items() for name, leaf in _flatten(node, key).items()}


def decode_picture(data: bytes) -> np.ndarray:
  """Returns uint8[H, W, 3] of an encoded picture."""
  with Image.open(io.BytesIO(data)) as image:
    return np.asarray(image.convert("RGB"))


def _children(node: Mapping[str, Any]) -> dict[str, Any]:
  return dict(node["featuresDict"]["features"])


def _flatten(node: Mapping[str, Any], name: str = "") -> dict[str, Feature]:
  if "featuresDict" in node:
    join = (lambda key: f"{name}/{key}") if name else str
    return {k: leaf for key, child in _children(node).items() for k, leaf in _flatten(child, join(key)).items()}
  return {name: _leaf(node)}


def _leaf(node: Mapping[str, Any]) -> Feature:
  if "image" in node:
    return Feature("image", node["image"].get("dtype", "uint8"))
  if "text" in node:
    return Feature("text")
  if "tensor" in node:
    tensor = node["tensor"]
    shape = tuple(int(n) for n in tensor.get("shape", {}).get("dimensions", []))
    if tensor.get("dtype") in ("string", "object"):
      return Feature("text")
    return Feature("tensor", tensor["dtype"], shape, tensor.get("encoding", "none"))
  if "classLabel" in node:
    return Feature("tensor", "int64")
  return Feature("other")


def _numpy_dtype(name: str) -> np.dtype:
  if name == "bfloat16":
    return np.dtype(import_extra("ml_dtypes", "reading bfloat16").bfloat16)
  return np.dtype(name)
