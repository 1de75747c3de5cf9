"""What `features.json` of a TensorFlow data set says about its Examples, flattened to the names in the records."""

import dataclasses
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax.data import checks, pictures
from pi0rag_jax.data.dataset import import_extra
from pi0rag_jax.errors import Pi0RagError


@dataclasses.dataclass(frozen=True)
class Feature:
  """One leaf of the tree of features."""

  name: str  # '/'-joined
  kind: str  # tensor, text, image or other
  dtype: str = ""
  shape: tuple[int, ...] = ()  # -1 where it varies
  encoding: str = "none"  # of tensors: none, bytes or zlib

  @property
  def is_picture(self) -> bool:
    """Whether it is a camera's: encoded, or stored as plain numbers."""
    return self.kind == "image" or (self.dtype == "uint8" and len(self.shape) == 3 and self.shape[-1] in (1, 3, 4))

  @property
  def why_not_rgb(self) -> str:
    """Returns why its pictures are no RGB, '' where they are."""
    name = self.name.rsplit("/", 1)[-1]
    if self.kind == "image" and not self.shape:  # older files do not say it
      return "" if self.dtype == "uint8" else f"stored is {self.dtype}, no picture in 8-bit grey or colour"
    return pictures.why_not_rgb(name, (1, *self.shape), self.dtype) if self.dtype != "float32" or (
      self.kind != "image") else f"stored is {self.dtype}, no picture in 8-bit grey or colour"

  @property
  def is_code_points(self) -> bool:
    """Whether it is a text as numbers, one per character, as Language-Table stores it."""
    return self.kind == "tensor" and self.dtype in ("int32", "uint8") and len(self.shape) == 1

  def decode(self, values: np.ndarray | list[bytes], frames: int) -> Any:
    """Returns [frames, *shape] of a tensor, or a list of texts or of encoded pictures.

    Raises:
      ValueError: the record holds another number of values.
    """
    if self.kind != "tensor":
      if not isinstance(values, list) or len(values) != frames:
        often = f", {len(values) // frames} per frame" if len(values) % frames == 0 and len(values) else ""
        raise ValueError(f"{frames} frames need as many {self.kind}s, the record holds {len(values)}{often}")
      return [value.decode("utf8") for value in values] if self.kind == "text" else values
    dtype = _numpy_dtype(self.dtype)
    if isinstance(values, list):
      limit = frames * abs(math.prod(self.shape)) * dtype.itemsize + 1
      unpack = (lambda data: zlib.decompressobj().decompress(data, limit)) if self.encoding == "zlib" else bytes
      values = np.concatenate([np.frombuffer(unpack(value), dtype) for value in values])
    return values.astype(dtype, copy=False).reshape(frames, *self.shape)

  def texts(self, values: np.ndarray | list[bytes], frames: int) -> list[str]:
    """Returns one text per frame, of texts or of rows of code points."""
    if self.kind == "text":
      return self.decode(values, frames)
    return [bytes(row[row > 0].astype(np.uint8)).decode("utf8") if row.max(initial=0) < 256 else
            "".join(map(chr, row[row > 0].tolist())) for row in self.decode(values, frames)]

  def frames(self, values: np.ndarray | list[bytes]) -> int | None:
    """Returns for how many frames the values are, None where the shape does not tell."""
    if self.kind in ("text", "image") or isinstance(values, list):
      return len(values)
    size = math.prod(self.shape)
    return len(values) // size if size > 0 and len(values) % size == 0 else None


def read_features(folder: Path) -> tuple[dict[str, Feature], dict[str, Feature]]:
  """Returns (features of a step, features of an episode), by their '/'-joined names.

  Raises:
    Pi0RagError: no features.json, or one without steps.
  """
  file = folder / "features.json"
  stored = checks.read_json(file)
  try:
    tree = _children(stored)
    steps = tree.pop("steps")
    inner = steps["sequence"]["feature"] if "sequence" in steps else steps["dataset"]["feature"]
    where = f"'{file}': "
    return _flatten(inner, where), {
      name: leaf for key, node in tree.items() for name, leaf in _flatten(node, where, key).items()}
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise Pi0RagError(f"'{file}' describes no RLDS data set (episodes of 'steps'): {error!r}") from error


def _children(node: Mapping[str, Any]) -> dict[str, Any]:
  return dict(node["featuresDict"]["features"])


def _flatten(node: Mapping[str, Any], where: str, name: str = "") -> dict[str, Feature]:
  if "featuresDict" in node:
    join = (lambda key: f"{name}/{key}") if name else str
    return {k: leaf for key, child in _children(node).items() for k, leaf in _flatten(child, where, join(key)).items()}
  return {name: _leaf(node, name, f"{where}feature '{name}'")}


def _leaf(node: Mapping[str, Any], name: str, where: str) -> Feature:
  if "text" in node:
    return Feature(name, "text")
  if "classLabel" in node:
    return Feature(name, "tensor", "int64")
  kind = next((kind for kind in ("image", "tensor") if kind in node), None)
  if kind is None:
    return Feature(name, "other")
  said = checks.mapping(node[kind], where)
  dtype = checks.text(said.get("dtype", "uint8" if kind == "image" else None), f"{where}, dtype")
  shape = checks.shape(said.get("shape", {}).get("dimensions", []), f"{where}, shape")
  if kind == "tensor" and dtype in ("string", "object"):
    return Feature(name, "text")
  if _numpy_dtype(dtype).kind not in "fiubV":
    raise checks.refused(f"{where}, dtype", dtype, "dtypes of numbers")
  return Feature(name, kind, dtype, shape, str(said.get("encoding", "none")))


def _numpy_dtype(name: str) -> np.dtype:
  if name == "bfloat16":
    return np.dtype(import_extra("ml_dtypes", "reading bfloat16").bfloat16)
  try:
    return np.dtype(name)
  except TypeError:
    raise Pi0RagError(f"features.json names the dtype {checks.shown(name)}, which numpy does not know") from None
