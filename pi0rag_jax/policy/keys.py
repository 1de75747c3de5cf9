"""Retrieval keys: what a decision looks like to the memory, made from the policy's own prefix or a light encoder's look
at the cameras, and the state.

A key is [pooled features, standardized | proprioception, standardized], each block scaled so that its squared
length averages its weight. Distances between keys are divided by `unit_distance`, the median distance from a
demonstration's key to the nearest one of another episode, so that thresholds mean the same for every policy.
"""

import dataclasses
import json
import pathlib
import zipfile
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from flax import traverse_util

from pi0rag_jax import errors, schema
from pi0rag_jax.models import embedding
from pi0rag_jax.models.backbones.light import LightBackbone
from pi0rag_jax.models.observation import Observation
from pi0rag_jax.models.paligemma import PrefixOutput
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.typing import Array, Params

STEM = "key_stats"
FILE_NAME = f"{STEM}.json"
LIGHT = "light"
# Per prefix token: the last layer's output, the embedding that enters the first layer, or the last layer's
# attention values, which are what the action expert reads. The light encoder reads no prefix, it sees the cameras.
TOKEN_SOURCES = {
    "hidden": lambda prefix: prefix.hidden_BSD,
    "tokens": lambda prefix: prefix.tokens_BSD,
    "values": lambda prefix: prefix.kv_cache[1][-1].reshape(*prefix.mask_BS.shape, -1),
}
FEATURES = "features"  # of a head's frozen backbone, pooled by it already
SOURCES = (*TOKEN_SOURCES, LIGHT, FEATURES)
# `mean`: over all tokens, or cameras. `camera`: each camera's, one after the other. `parts`: those and the prompt's.
POOLS = ("mean", "camera", "parts")
# `random`: Gaussian, keeps distances on average. `pca`: the directions in which demonstrations differ most.
PROJECTIONS = ("random", "pca")
# How proprioception is standardized. `policy`: as the policy sees it, so what is hidden from it counts nothing.
# `spread`: each number by its spread over demonstrations.
STATE_SCALES = ("policy", "spread")
# Below this spread a feature is noise of the computer rather than of the world.
MIN_STD = 1e-4
# What is hidden from a policy is normalized by a spread of 1e6: so small a number may still be a measurement.
MIN_STATE_STD = 1e-10
# In spreads: a number that hardly moves in demonstrations must not outweigh all others once it does.
STATE_LIMIT = 10.0
_ALL = "all"  # of the prefix
_ENCODER = "encoder/"  # what the names of the light encoder's arrays in the file begin with


@dataclasses.dataclass(frozen=True)
class KeyRecipe:
  """Which numbers make a key."""

  source: str = "hidden"  # one of SOURCES
  state_weight: float = 1.0  # of proprioception against the pooled features; 0 leaves it out
  projection_dim: int = 0  # projection of the pooled features to so many numbers; 0 keeps them whole
  pool: str = "mean"  # one of POOLS
  projection: str = "random"  # one of PROJECTIONS
  weights: str = ""  # which light encoder, by a fingerprint; '' for the other sources
  state_scale: str = "policy"  # one of STATE_SCALES

  def __post_init__(self):
    for field, known in (("source", SOURCES), ("pool", POOLS), ("projection", PROJECTIONS),
                         ("state_scale", STATE_SCALES)):
      if getattr(self, field) not in known:
        raise errors.unknown_name(f"key {field}", getattr(self, field), known)
    if self.source == LIGHT and self.pool == "parts":
      raise errors.Pi0RagError("key pool 'parts' needs the prompt, which the light encoder does not read: mean, camera")
    if self.source == FEATURES and self.pool != "mean":
      raise errors.Pi0RagError(f"key pool '{self.pool}' of the source '{FEATURES}': the backbone has pooled them; "
                               "allowed: mean")
    if self.projection_dim < 0 or self.state_weight < 0:
      raise errors.Pi0RagError(f"projection_dim is {self.projection_dim}, state_weight {self.state_weight}; allowed is "
                               "0 or more")

  @property
  def name(self) -> str:
    """The recipe in words: a memory records it and refuses another."""
    pool = "" if self.pool == "mean" else f"-{self.pool}"
    weights = f"-{self.weights}" if self.weights else ""
    kind = {"random": "project", "pca": "pca"}[self.projection]
    projection = f"-{kind}{self.projection_dim}" if self.projection_dim else ""
    scale = "-spread" if self.state_scale == "spread" else ""
    return f"{self.source}{weights}{pool}{projection}+state{self.state_weight:g}{scale}"


class _Stored(msgspec.Struct):
  """What `key_stats.json` holds."""

  recipe: KeyRecipe
  mean: list[float]
  std: list[float]
  unit_distance: Annotated[float, msgspec.Meta(gt=0)] | None
  state_mean: list[float] | None = None
  state_std: list[float] | None = None


@dataclasses.dataclass(frozen=True)
class KeyStats:
  """Where the keys of a policy lie, measured over its demonstrations."""

  recipe: KeyRecipe
  mean: np.ndarray  # float[D], of the pooled features
  std: np.ndarray  # float[D]
  # Median distance between nearest keys of different episodes; None where there were no demonstrations to measure it.
  unit_distance: float | None
  components: np.ndarray | None = None  # float32[D, projection_dim] of projection 'pca'
  encoder: Params | None = None  # of source 'light'
  # Of the proprioception as the policy normalizes it, where it is standardized by its 'spread'; float[P].
  state_mean: np.ndarray | None = None
  state_std: np.ndarray | None = None

  @classmethod
  def identity(cls, recipe: KeyRecipe, width: int, encoder: Params | None = None, *,
               unit_distance: float | None = 1.0) -> "KeyStats":
    """Returns statistics that change nothing, for a policy whose demonstrations are not at hand."""
    return cls(recipe, np.zeros(width), np.ones(width), unit_distance, encoder=encoder)

  @classmethod
  def uncalibrated(cls, model: PaliGemmaConfig) -> "KeyStats":
    """Returns the keys of a policy without any: the attention values of the last layer, which cost no extra pass.

    Their unit distance is measured by the memory, on its first episodes.
    """
    recipe = KeyRecipe(source="values")
    return cls.identity(recipe, feature_width(recipe, model), unit_distance=None)

  @property
  def name(self) -> str:
    """The keys in words: a memory records them and refuses others."""
    return self.recipe.name + ("" if self.unit_distance is not None else "-uncalibrated")

  def save(self, directory, name: str = "") -> None:
    """Writes the statistics beside a policy: its own, or, with a name, others to choose by that."""
    path = stats_path(directory, name)
    values = {"recipe": dataclasses.asdict(self.recipe), "mean": self.mean.tolist(), "std": self.std.tolist(),
              "unit_distance": self.unit_distance}
    if self.state_std is not None and self.state_mean is not None:
      values |= {"state_mean": self.state_mean.tolist(), "state_std": self.state_std.tolist()}
    arrays: dict[str, Any] = {} if self.components is None else {"components": self.components}
    if self.encoder is not None:
      arrays |= {_ENCODER + at: a for at, a in traverse_util.flatten_dict(self.encoder, sep="/").items()}
    path.with_suffix(".npz").unlink(missing_ok=True)
    if arrays:
      np.savez(path.with_suffix(".npz"), **{at: np.asarray(a) for at, a in arrays.items()})  # type: ignore[arg-type]
    path.write_text(json.dumps(values) + "\n", encoding="utf8")

  @classmethod
  def load(cls, directory, name: str = "") -> "KeyStats":
    """Returns the statistics beside a policy. Errors: Pi0RagError when there are none of that name, or parts lack."""
    path = stats_path(directory, name)
    if not path.is_file():
      names = sorted(other.name.split(".")[1] for other in pathlib.Path(directory).glob(f"{STEM}.*.json"))
      others = f" (there are: {', '.join(names)})" if names else ""
      flag = f" --name={name}" if name else ""
      raise errors.Pi0RagError(f"no {path.name} in {directory}{others}: make it from demonstrations with "
                               f"python -m train.calibrate --policy=DIR --data=DIR{flag}")
    stored = schema.read(path, _Stored)
    recipe = stored.recipe
    if (recipe.state_scale == "spread") != (stored.state_std is not None and stored.state_mean is not None):
      raise _foreign(path, recipe)
    if not stored.mean or len(stored.mean) != len(stored.std) or min(stored.std) < 0:
      raise errors.Pi0RagError(f"{path}: {len(stored.mean)} means and {len(stored.std)} spreads; allowed: one of each "
                               "per feature, spreads of 0 or more")
    arrays = _read_arrays(path.with_suffix(".npz"), recipe)
    encoder = {at.removeprefix(_ENCODER): a for at, a in arrays.items() if at.startswith(_ENCODER)}
    return cls(recipe, np.asarray(stored.mean), np.asarray(stored.std), stored.unit_distance, arrays.get("components"),
               traverse_util.unflatten_dict(encoder, sep="/") if encoder else None,
               *(None if each is None else np.asarray(each) for each in (stored.state_mean, stored.state_std)))

  def key_dim(self, state_dim: int) -> int:
    """Returns the number of entries of a key for a robot with `state_dim` proprioceptive numbers."""
    features = self.recipe.projection_dim or len(self.mean)
    return features + (state_dim if self.recipe.state_weight > 0 else 0)

  @property
  def params(self) -> dict[str, Any]:
    """What `features` and `make_key` take as `params`: the arrays that are too large for a program's constants."""
    found: dict[str, Any] = {} if self.encoder is None else {"encoder": self.encoder}
    if self.recipe.projection_dim:
      pca = self.recipe.projection == "pca"
      found["projection"] = self.components if pca else projection(len(self.mean), self.recipe.projection_dim)
    return found


def stats_path(directory, name: str = "") -> pathlib.Path:
  """Returns where a policy's key statistics are. Errors: Pi0RagError for a name that is none of a file."""
  if name and not name.replace("-", "").replace("_", "").isalnum():
    raise errors.Pi0RagError(f"keys are named {name!r}; allowed are letters, digits, - and _")
  return pathlib.Path(directory, f"{STEM}.{name}.json" if name else FILE_NAME)


def light_encoder(recipe: KeyRecipe, model: PaliGemmaConfig) -> LightBackbone:
  """Returns the light encoder that sees a policy's cameras; it reads no prompt."""
  return LightBackbone(image_keys=model.image_keys, image_size=model.image_size, pool=recipe.pool)


def features(prefix: PrefixOutput, observation: Observation, recipe: KeyRecipe, model: PaliGemmaConfig, params, *,
             seen: tuple[str, ...]) -> Array:
  """Returns the pooled features of a recipe, float32[B, D] (device side).

  Args:
    prefix: of the policy, for a source that reads it.
    model: the policy's sizes, with all of its cameras.
    params: see KeyStats.params.
    seen: the cameras of this prefix, in its order; those that are absent pool to zeros.
  """
  if recipe.source == LIGHT:
    some = next(iter(observation.images.values()))
    images = {name: observation.images.get(name, jnp.zeros_like(some)) for name in model.image_keys}
    with jax.default_matmul_precision("highest"):  # as of the projection in `make_key`
      return light_encoder(recipe, model).encode(params["encoder"], observation.replace(images=images))
  values_BSD = TOKEN_SOURCES[recipe.source](prefix)
  spans = embedding.prefix_spans(dataclasses.replace(model, image_keys=seen))
  # Prompts are cut to their length, so that the last span is what is left.
  spans |= {_ALL: slice(None), embedding.LANGUAGE: slice(spans[embedding.LANGUAGE].start, None)}
  pooled = {part: embedding.pool_prefix(values_BSD, prefix.mask_BS, span=spans[part])
            for part in _parts(recipe, model) if part in spans}
  nothing_BD = jnp.zeros_like(next(iter(pooled.values())))
  return jnp.concatenate([pooled.get(part, nothing_BD) for part in _parts(recipe, model)], axis=-1)


def feature_width(recipe: KeyRecipe, model: PaliGemmaConfig) -> int:
  """Returns the D of `features`. Errors: Pi0RagError for a head's keys."""
  if recipe.source == FEATURES:
    raise errors.Pi0RagError(f"the keys '{recipe.name}' are of a head's backbone; a policy with a network of its own "
                             f"has {', '.join((*TOKEN_SOURCES, LIGHT))}")
  if recipe.source == LIGHT:
    return light_encoder(recipe, model).hidden_size
  tower = model.paligemma
  width = tower.num_kv_heads * tower.head_dim if recipe.source == "values" else tower.width
  return width * len(_parts(recipe, model))


def make_key(pooled_BD, state_BP, stats: KeyStats, params):
  """Returns keys float32[B, E] from the pooled features and the normalized proprioception (device side)."""
  recipe = stats.recipe
  scale_D = 1.0 / np.maximum(stats.std, MIN_STD) / np.sqrt(len(stats.mean))
  key_BE = (pooled_BD.astype(jnp.float32) - stats.mean.astype(np.float32)) * scale_D.astype(np.float32)
  if recipe.projection_dim:
    # In full: by default a GPU or TPU rounds the factors, and keys made there would be far from those of a CPU.
    key_BE = jnp.matmul(key_BE, params["projection"], precision=jax.lax.Precision.HIGHEST)
  if recipe.state_weight == 0:
    return key_BE
  state_BP = state_BP.astype(jnp.float32)
  if recipe.state_scale == "spread":
    assert stats.state_mean is not None and stats.state_std is not None, "loaded and calibrated statistics have both"
    std_P = np.maximum(stats.state_std, MIN_STATE_STD).astype(np.float32)
    state_BP = jnp.clip((state_BP - stats.state_mean.astype(np.float32)) / std_P, -STATE_LIMIT, STATE_LIMIT)
  weight = recipe.state_weight / np.sqrt(state_BP.shape[-1])
  return jnp.concatenate([key_BE, state_BP * weight], axis=-1)


def projection(width: int, dim: int) -> np.ndarray:
  """Returns the fixed random matrix float32[width, dim] that keeps distances on average (Gaussian, seed 0)."""
  return (np.random.default_rng(0).standard_normal((width, dim)) / np.sqrt(dim)).astype(np.float32)


def principal_components(standardized_ND: np.ndarray, dim: int) -> np.ndarray:
  """Returns the orthonormal directions of largest variance, float32[D, dim'], dim' at most D and N - 1.

  Each points to where its largest entry is positive, so that the same data give the same keys.
  """
  centred_ND = standardized_ND - standardized_ND.mean(axis=0)
  _, vectors_DD = np.linalg.eigh(centred_ND.T.astype(float) @ centred_ND)  # by rising variance
  dim = min(dim, standardized_ND.shape[1], max(len(standardized_ND) - 1, 1))
  components = vectors_DD[:, ::-1][:, :dim]
  largest = np.take_along_axis(components, np.abs(components).argmax(axis=0)[None], axis=0)
  return (components * np.sign(largest)).astype(np.float32)


def distances(rows_RE: np.ndarray, keys_NE: np.ndarray) -> np.ndarray:
  """Returns the distance of each of some keys from each of others, [R, N]."""
  squared_RN = np.square(rows_RE).sum(axis=1)[:, None] + np.square(keys_NE).sum(axis=1) - 2 * rows_RE @ keys_NE.T
  return np.sqrt(np.maximum(squared_RN, 0.0))


def unit_distance(keys_NE: np.ndarray, episode_N: np.ndarray) -> float:
  """Returns the median distance from a key to the nearest key of another episode."""
  squared_N = np.square(keys_NE).sum(axis=1)
  nearest_N = np.empty(len(keys_NE))
  for i, (key_E, episode) in enumerate(zip(keys_NE, episode_N)):
    squared = squared_N + squared_N[i] - 2 * keys_NE @ key_E
    nearest_N[i] = np.sqrt(max(squared[episode_N != episode].min(), 0.0))
  return float(np.median(nearest_N))


def _parts(recipe: KeyRecipe, model: PaliGemmaConfig) -> list[str]:
  """Returns the parts of the prefix that are pooled one after the other."""
  return {"mean": [_ALL], "camera": [*model.image_keys], "parts": [*model.image_keys, embedding.LANGUAGE]}[recipe.pool]


def _read_arrays(path: pathlib.Path, recipe: KeyRecipe) -> dict[str, np.ndarray]:
  """Returns the arrays beside key statistics. Errors: Pi0RagError if those that the recipe needs are not there."""
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = dict(file)
  except FileNotFoundError:
    arrays = {}
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    raise errors.Pi0RagError(f"{path} is damaged ({error}): make it anew with train.calibrate") from error
  needs_components = bool(recipe.projection_dim) and recipe.projection == "pca"
  if needs_components != ("components" in arrays) or (recipe.source == LIGHT) != any(map(_is_encoder, arrays)):
    raise _foreign(path, recipe)
  return arrays


def _foreign(path: pathlib.Path, recipe: KeyRecipe) -> errors.Pi0RagError:
  return errors.Pi0RagError(f"{path.name} in {path.parent} does not belong to the keys '{recipe.name}': make it anew "
                            "with train.calibrate")


def _is_encoder(name: str) -> bool:
  return name.startswith(_ENCODER)
