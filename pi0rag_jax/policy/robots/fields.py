"""Reading the entries of a robot's dictionary, with errors that name them."""

from collections.abc import Mapping

import numpy as np

from pi0rag_jax import errors
from pi0rag_jax.policy import images


def read_vector(data: Mapping, key: str, dim: int | None = None) -> np.ndarray:
  """Returns an entry as float[dim]; a number alone counts as a vector of one.

  Errors: Pi0RagError when it is missing, of another length, or not finite.
  """
  vector = np.atleast_1d(np.asarray(_read(data, key)))
  if dim is not None and vector.shape[-1] != dim:
    raise errors.Pi0RagError(f"{key} has {vector.shape[-1]} numbers, the robot has {dim}")
  if not np.isfinite(vector).all():
    raise errors.Pi0RagError(f"{key} has NaN or infinity: the observation is not of a working robot")
  return vector


def read_image(data: Mapping, key: str) -> np.ndarray:
  """Returns an entry as uint8[H, W, 3]; see `images.parse_image`."""
  return images.parse_image(_read(data, key), key)


def passed_on(data: Mapping) -> dict:
  """Returns the entries that no robot changes: the prompt."""
  if "prompt" not in data:
    return {}
  prompt = data["prompt"]
  return {"prompt": prompt.decode("utf-8") if isinstance(prompt, bytes) else prompt}


def _read(data: Mapping, key: str):
  if key not in data:
    raise errors.unknown_name("entry of the observation", key, data)
  return data[key]
