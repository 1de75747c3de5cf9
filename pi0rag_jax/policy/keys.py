"""Retrieval keys: what a decision looks like to the memory, made from the policy's own prefix and the state.

A key is [pooled prefix, standardized | proprioception, standardized], each block scaled so that its squared
length averages its weight. Distances between keys are divided by `unit_distance`, the median distance from a
demonstration's key to the nearest one of another episode, so that thresholds mean the same for every policy.
"""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np

from pi0rag_jax import errors
from pi0rag_jax.models.pi0 import Pi0Config, PrefixOutput

FILE_NAME = "key_stats.json"
# Per prefix token: the last layer's output, the embedding that enters the first layer, or the last layer's
# attention values, which are what the action expert reads.
SOURCES = {
    "hidden": lambda prefix: prefix.hidden_BSD,
    "tokens": lambda prefix: prefix.tokens_BSD,
    "values": lambda prefix: prefix.kv_cache[1][-1].reshape(*prefix.mask_BS.shape, -1),
}
# Below this spread a feature is noise of the computer rather than of the world.
MIN_STD = 1e-4


@dataclasses.dataclass(frozen=True)
class KeyRecipe:
  """Which numbers make a key."""

  source: str = "hidden"  # one of SOURCES
  state_weight: float = 1.0  # of proprioception against the pooled prefix; 0 leaves it out
  projection_dim: int = 0  # random projection of the pooled prefix to so many numbers; 0 keeps it whole

  def __post_init__(self):
    if self.source not in SOURCES:
      raise errors.unknown_name("key source", self.source, SOURCES)

  @property
  def name(self) -> str:
    """The recipe in words: a memory records it and refuses another."""
    projection = f"-project{self.projection_dim}" if self.projection_dim else ""
    return f"{self.source}{projection}+state{self.state_weight:g}"


@dataclasses.dataclass(frozen=True)
class KeyStats:
  """Where the keys of a policy lie, measured over its demonstrations."""

  recipe: KeyRecipe
  mean: np.ndarray  # float[D], of the pooled prefix
  std: np.ndarray  # float[D]
  unit_distance: float  # median distance between nearest keys of different episodes

  @classmethod
  def identity(cls, recipe: KeyRecipe, width: int) -> "KeyStats":
    """Returns statistics that change nothing, for a policy whose demonstrations are not at hand."""
    return cls(recipe, np.zeros(width), np.ones(width), 1.0)

  def save(self, directory) -> None:
    values = dataclasses.asdict(self) | {"mean": self.mean.tolist(), "std": self.std.tolist()}
    pathlib.Path(directory, FILE_NAME).write_text(json.dumps(values) + "\n", encoding="utf8")

  @classmethod
  def load(cls, directory) -> "KeyStats":
    """Returns the statistics beside a policy. Errors: Pi0RagError when there are none."""
    path = pathlib.Path(directory, FILE_NAME)
    if not path.is_file():
      raise errors.Pi0RagError(f"no {FILE_NAME} in {directory}: make it from demonstrations with "
                               "python -m train.calibrate --policy=DIR --data=DIR")
    values = json.loads(path.read_text(encoding="utf8"))
    return cls(KeyRecipe(**values["recipe"]), np.asarray(values["mean"]), np.asarray(values["std"]),
               float(values["unit_distance"]))

  def key_dim(self, state_dim: int) -> int:
    """Returns the number of entries of a key for a robot with `state_dim` proprioceptive numbers."""
    prefix = self.recipe.projection_dim or len(self.mean)
    return prefix + (state_dim if self.recipe.state_weight > 0 else 0)


def source_tokens(prefix: PrefixOutput, recipe: KeyRecipe):
  """Returns what a recipe pools, float[B, S, D]."""
  return SOURCES[recipe.source](prefix)


def source_width(recipe: KeyRecipe, model: Pi0Config) -> int:
  """Returns the D of `source_tokens` for a model."""
  if recipe.source == "values":
    return model.paligemma.num_kv_heads * model.paligemma.head_dim
  return model.paligemma.width


def make_key(pooled_BD, state_BP, stats: KeyStats):
  """Returns keys float32[B, E] from the pooled prefix and the normalized proprioception (device side)."""
  recipe = stats.recipe
  scale_D = 1.0 / np.maximum(stats.std, MIN_STD) / np.sqrt(len(stats.mean))
  prefix_BE = (pooled_BD.astype(jnp.float32) - stats.mean.astype(np.float32)) * scale_D.astype(np.float32)
  if recipe.projection_dim:
    prefix_BE = prefix_BE @ projection(len(stats.mean), recipe.projection_dim)
  if recipe.state_weight == 0:
    return prefix_BE
  weight = recipe.state_weight / np.sqrt(state_BP.shape[-1])
  return jnp.concatenate([prefix_BE, state_BP.astype(jnp.float32) * weight], axis=-1)


def projection(width: int, dim: int) -> np.ndarray:
  """Returns the fixed random matrix float32[width, dim] that keeps distances on average (Gaussian, seed 0)."""
  return (np.random.default_rng(0).standard_normal((width, dim)) / np.sqrt(dim)).astype(np.float32)
