"""model.safetensors of openpi's PyTorch port (pi0 and pi0.5), read as openpi's own tree."""

import functools
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax import lfs
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi import sources, torch_names

FILE_NAME = "model.safetensors"
EXTRA = "pip install 'pi0rag-jax[torch]'"
# So400m/14, the only tower that openpi uses; the file does not say.
VISION_HEADS = 16
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SHOWN = 8


class TorchSource:
  """See `sources.Source`.

  Errors: Pi0RagError when the file is damaged, or its tensors are not those of a pi0 or pi0.5.
  """

  def __init__(self, file: pathlib.Path, *, vision_heads: int = VISION_HEADS):
    self.name = str(file)
    self._file = file
    self._tensors = self._read_header()
    # Saving ties the language head to the embedding and keeps one of the names.
    embedding = torch_names.EMBEDDING if torch_names.EMBEDDING in self._tensors else torch_names.TIED_EMBEDDING
    rules = torch_names.rules(pi05=torch_names.ADAPTIVE_NORM in self._tensors, embedding=embedding)
    self._rules = {rule.path: rule for rule in rules}
    self._check_names()
    self._heads = {"one": 1, "vision": vision_heads, "language": self._gemma_heads(torch_names.LANGUAGE),
                   "expert": self._gemma_heads(torch_names.EXPERT)}
    self.shapes = {path: self._shape(rule) for path, rule in self._rules.items()}

  def read(self, paths: Sequence[str], dtypes: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
    return {path: self._read_array(self._rules[path], dtypes[path]) for path in paths}

  def _read_array(self, rule: torch_names.Rule, dtype) -> np.ndarray:
    """Returns one array, filled tensor by tensor."""
    array = np.empty(self.shapes[rule.path].shape, dtype)
    for index, name in self._indexed_names(rule):
      # Opened anew each time: the pages of an open file's tensors would count as memory in use.
      with _open(self._file) as tensors:
        array[index] = rule.layout(tensors.get_tensor(self._stored[name]), self._heads[rule.heads])
    return array

  def _read_header(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shape and type of every tensor."""
    with _open(self._file) as tensors:
      slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
      foreign = {str(part.get_dtype()) for part in slices.values()} - DTYPES.keys()
      if foreign:
        seen, known = ", ".join(sorted(foreign)), ", ".join(DTYPES)
        raise Pi0RagError(f"{self._file} has tensors of type {seen}; expected {known}")
      head = next((name for name in slices if name.endswith(torch_names.ACTION_HEAD)), "")
      self._stored: dict[str, str] = {}  # the port's name -> the file's
      for name in slices:
        port = torch_names.ported_name(name, head.removesuffix(torch_names.ACTION_HEAD))
        if port in self._stored:
          raise Pi0RagError(f"{self._file} has {port} twice, as {self._stored[port]} and {name}")
        if port is not None:
          self._stored[port] = name
      return {name: jax.ShapeDtypeStruct(tuple(part.get_shape()), jnp.dtype(DTYPES[str(part.get_dtype())]))
              for name, part in ((name, slices[stored]) for name, stored in self._stored.items())}

  def _check_names(self) -> None:
    expected = {name for rule in self._rules.values() for _, name in self._indexed_names(rule)}
    known = expected | torch_names.UNUSED | {torch_names.EMBEDDING, torch_names.TIED_EMBEDDING}
    problems = sources.both_kinds([f"missing {name}" for name in sorted(expected - self._tensors.keys())],
                                  [f"unexpected {name}" for name in sorted(self._tensors.keys() - known)])
    if problems:
      shown = "\n  ".join(problems[:SHOWN])
      raise Pi0RagError(f"{self._file} is no pi0 or pi0.5 of openpi's PyTorch port, {len(problems)} tensors differ; "
                        f"the first:\n  {shown}")

  def _indexed_names(self, rule: torch_names.Rule):
    """Yields (index into the array, tensor name) for every tensor that a rule takes."""
    layers = range(self._depth(rule.names[0])) if rule.layered else (None,)
    for layer, (part, name) in itertools.product(layers, enumerate(rule.names)):
      index = () if layer is None else (layer,)
      yield index + ((part,) if len(rule.names) > 1 else ()), name if layer is None else name.format(layer)

  def _depth(self, name: str) -> int:
    """Returns how many layers the tower of a layered name has, at least 1."""
    layer = re.compile(re.escape(name.split("{}")[0]) + r"(\d+)\.")
    numbers = (int(found[1]) for found in map(layer.match, self._tensors) if found)
    return max(numbers, default=0) + 1

  def _gemma_heads(self, prefix: str) -> int:
    """Returns the number of query heads; keys have one head in all models that the port knows."""
    query, key = (self._tensors[f"{prefix}.layers.0.self_attn.{name}_proj.weight"].shape[0] for name in "qk")
    return query // key

  def _shape(self, rule: torch_names.Rule) -> jax.ShapeDtypeStruct:
    """Returns the shape of a rule's array by arithmetic on the tensors' shapes."""
    names = [name for _, name in self._indexed_names(rule)]
    parts = [self._tensors[name] for name in names]
    odd = next((name for name, part in zip(names, parts) if part.shape != parts[0].shape), None)
    if odd is not None:
      raise Pi0RagError(f"{self._file}: {odd} is {self._tensors[odd].shape}, {names[0]} is {parts[0].shape}")
    # One number broadcast to the shape: a layout's views and splits of it copy nothing.
    stand_in = np.broadcast_to(np.zeros((), np.int8), parts[0].shape)
    try:
      inner = rule.layout(stand_in, self._heads[rule.heads]).shape
    except ValueError as error:
      raise Pi0RagError(f"{self._file}: {names[0]} is {parts[0].shape}, which {self._heads[rule.heads]} heads "
                        "cannot share") from error
    outer = (len(names) // len(rule.names),) if rule.layered else ()
    outer += (len(rule.names),) if len(rule.names) > 1 else ()
    return jax.ShapeDtypeStruct(outer + inner, functools.reduce(jnp.promote_types, (part.dtype for part in parts)))


def _open(file: pathlib.Path):
  """Returns the opened file."""
  try:
    import safetensors
  except ImportError as error:
    raise Pi0RagError(f"reading {file} needs the package safetensors: {EXTRA}") from error
  try:
    return safetensors.safe_open(file, framework="numpy")
  except (safetensors.SafetensorError, OSError) as error:
    raise Pi0RagError(lfs.damaged(file, error)) from error
