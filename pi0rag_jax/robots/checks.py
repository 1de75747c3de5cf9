"""What a policy refuses: entries of an observation, statistics and sizes that do not fit, with what is allowed."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from pi0rag_jax import errors
from pi0rag_jax.models import family
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.robots.normalize import NormStats

STATS_KEYS = ("state", "actions")


@dataclasses.dataclass(frozen=True)
class CheckEntries:
  """Passes on the entries that a robot's transforms have made, if a model can take them."""

  cameras: tuple[str, ...] = ()  # those that must be there
  floats: bool = False  # whether pictures may be floats in [-1, 1] already, as those of openpi's debug data

  def __call__(self, data: dict) -> dict:
    cameras = data.get("image")
    if not isinstance(cameras, Mapping) or not cameras:
      raise errors.Pi0RagError(f"'image' is {_described(cameras)}; allowed: a dictionary of pictures by camera")
    missing = [name for name in self.cameras if name not in cameras]
    if missing:
      raise errors.Pi0RagError(f"no picture of {', '.join(missing)}, there are {', '.join(sorted(cameras))}: a camera "
                               "that a robot lacks is given as a black picture and masked in 'image_mask'")
    for name, image in cameras.items():
      self._check_picture(name, np.asarray(image))
    state = np.asarray(data.get("state"))
    if state.ndim != 1 or state.dtype.kind not in "fiu":
      raise errors.Pi0RagError(f"'state' is {_described(data.get('state'))}; allowed: numbers in one dimension")
    if not np.isfinite(state).all():
      raise errors.Pi0RagError(f"'state' has NaN or infinity at {_listed(np.flatnonzero(~np.isfinite(state)))}")
    return data

  def _check_picture(self, name: str, image: np.ndarray) -> None:
    is_float = self.floats and image.dtype.kind == "f"
    if not (is_float or image.dtype == np.uint8) or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
      raise errors.Pi0RagError(f"the picture of {name} is {_described(image)}; allowed: uint8[H, W, 3]")
    if is_float and not np.abs(image).max() <= 1:
      raise errors.Pi0RagError(f"the picture of {name} has values from {image.min():g} to {image.max():g}; "
                               "allowed: [-1, 1], or uint8")


def check_stats(stats: Mapping[str, NormStats | Mapping], *, source: str, quantile: bool) -> dict[str, NormStats]:
  """Returns statistics in the form that transforms take, if they are those of states and of actions.

  Args:
    stats: may hold the plain dictionaries of `load_norm_stats`.
    source: where they are from.
    quantile: whether quantiles are needed.
  """
  missing = [key for key in STATS_KEYS if key not in stats]
  if missing:
    raise errors.Pi0RagError(f"{source} lack those of {' and '.join(missing)}; there are {', '.join(sorted(stats))}")
  found = {key: value if isinstance(value, NormStats) else NormStats.from_dict(value) for key, value in stats.items()}
  for key, value in found.items():
    if quantile and (value.q01 is None or value.q99 is None):
      raise errors.Pi0RagError(f"{source}: those of {key} have no q01 and q99, by which pi0.5 and pi0-FAST normalize: "
                               "compute them anew")
  return found


def check_action_stats(stats: NormStats, dim: int, *, robot: str, model_dim: int) -> None:
  """Raises Pi0RagError for statistics of actions that are neither the robot's nor padded to the model's."""
  if stats.dim not in (dim, model_dim):
    raise errors.Pi0RagError(f"actions: the robot '{robot}' has {dim} dims, the norm stats have {stats.dim}: "
                             "they belong to another robot or data set")


def check_model(model: PaliGemmaConfig, name: str) -> None:
  """Raises Pi0RagError for sizes of another family than the configuration's."""
  if (seen := family.of(model).name) != name:
    raise errors.Pi0RagError(f"the configuration is of the family {name}, the model of {seen}")


def _described(value) -> str:
  """Returns type and shape of what was seen."""
  if value is None:
    return "missing"
  if isinstance(value, Mapping):
    return f"a dictionary of {', '.join(map(str, value)) or 'nothing'}"
  array = np.asarray(value)
  return f"{array.dtype}{list(array.shape)}"


def _listed(indices) -> str:
  return ", ".join(map(str, indices))
