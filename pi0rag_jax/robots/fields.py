"""Reading the entries of a robot's dictionary, with errors that name them."""

from collections.abc import Mapping

import numpy as np

from pi0rag_jax import errors
from pi0rag_jax.robots import images, transforms

# Of the observations that policies are compiled with: pictures of any size become the model's.
EXAMPLE_PX = 224
EXAMPLE_PROMPT = "do something"


def read_vector(data: Mapping, key: str, dim: int | None) -> np.ndarray:
  """Returns an entry as float[dim], of any length where that is None; a number alone counts as a vector of one.

  Errors: Pi0RagError when it is missing, of another shape, or not finite.
  """
  vector = np.atleast_1d(_read_numbers(data, key))
  if vector.ndim != 1:
    raise errors.Pi0RagError(f"{key} has shape {vector.shape}; allowed: ({'P' if dim is None else dim},)")
  return _checked(vector, key, len(vector) if dim is None else dim)


def read_chunk(data: Mapping, key: str, dim: int) -> np.ndarray:
  """Returns an entry as float[T, dim], such as the actions of a sample of a data set; errors as of `read_vector`."""
  chunk_TA = _read_numbers(data, key)
  if chunk_TA.ndim != 2:
    raise errors.Pi0RagError(f"{key} has shape {chunk_TA.shape}; allowed: (T, {dim}), one row per step")
  return _checked(chunk_TA, key, dim)


def read_image(data: Mapping, key: str) -> np.ndarray:
  """Returns an entry as uint8[H, W, 3]; see `images.parse_image`."""
  return images.parse_image(_read(data, key), key)


def read_group(data: Mapping, key: str) -> Mapping:
  """Returns an entry that is a dictionary itself, such as cameras by name."""
  group = _read(data, key)
  if not isinstance(group, Mapping):
    raise errors.Pi0RagError(f"{key} is {type(group).__name__}; allowed: a dictionary")
  return group


def passed_on(data: Mapping) -> dict:
  """Returns the entries that no robot changes: the prompt."""
  return {"prompt": transforms.read_prompt(data)} if "prompt" in data else {}


def _read(data: Mapping, key: str):
  if not isinstance(data, Mapping) or key not in data:
    there = ", ".join(sorted(map(str, data))) if isinstance(data, Mapping) else type(data).__name__
    raise errors.Pi0RagError(f"the observation has no '{key}'; there are: {there or 'none'}")
  return data[key]


def _read_numbers(data: Mapping, key: str) -> np.ndarray:
  numbers = np.asarray(_read(data, key))
  if numbers.dtype.kind not in "fiub":
    raise errors.Pi0RagError(f"{key} is {numbers.dtype}{list(numbers.shape)}; allowed: numbers")
  return numbers


def _checked(numbers: np.ndarray, key: str, dim: int) -> np.ndarray:
  if numbers.shape[-1] != dim:
    raise errors.Pi0RagError(f"{key} has {numbers.shape[-1]} numbers, the robot has {dim}")
  if not np.isfinite(numbers).all():
    raise errors.Pi0RagError(f"{key} has NaN or infinity: the observation is not of a working robot")
  return numbers
