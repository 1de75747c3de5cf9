"""Measures where a policy's keys lie: `python -m train.calibrate --policy=DIR --data=DIR`.

Writes `key_stats.json` into the policy directory: mean and spread of the pooled features over demonstrations,
principal components and the light encoder where the recipe has them, and the unit distance, by which every distance of
retrieval is divided. With `--name=NAME` it writes `key_stats.NAME.json` beside it, so that one policy has several kinds
of keys to choose from: `Policy.load(DIR, key_name=NAME)`. Some recipes:

  --name=spread --state_scale=spread                     proprioception that the policy does not see counts too
  --name=camera --pool=camera                            each camera's tokens of the last layer
  --name=parts-pca --pool=parts --projection=pca --projection_dim=512
  --name=input --source=tokens                           what enters the first layer
  --name=light --source=light --pool=camera [--light_weights=mobilenet_v3_small.safetensors]
"""

import argparse
import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from pi0rag_jax import errors
from pi0rag_jax.data import episodes, pipeline
from pi0rag_jax.models.backbones import mobilenet_torch
from pi0rag_jax.models.pi0 import Pi0Config
from pi0rag_jax.policy import feature_cache, keys
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.policy.spec import PolicySpec
from pi0rag_jax.typing import Params
from train import head_backbone

EPISODES = 150  # of the demonstrations; more changes the third digit
FRAMES_PER_EPISODE = 12
BATCH = 64
LIGHT_SEED = 0


def calibrate(directory, observations: Sequence[Sequence[dict]], recipe: keys.KeyRecipe, *,
              light_weights: str = "") -> keys.KeyStats:
  """Returns the key statistics of the policy in `directory`.

  Args:
    observations: per episode, some of its raw observations.
    recipe: of the keys; the light encoder's `weights` are named here, and a projection by principal components has at
      most as many as there are features and, less one, observations.
    light_weights: see `light_encoder`.
  """
  model, encoder = PolicySpec.load(directory).model, None
  if recipe.source == keys.LIGHT:
    recipe, encoder = light_encoder(recipe, model, light_weights)
  width = keys.feature_width(recipe, model)
  plain = dataclasses.replace(recipe, state_weight=1.0, projection_dim=0, state_scale="policy")
  raw = keys.KeyStats.identity(plain, width, encoder)
  raw_NE = _keys(Policy.load(directory, key_stats=raw), observations)
  # A key's blocks are scaled by one over the root of their widths.
  pooled_ND, state_NP = (part * np.sqrt(part.shape[1]) for part in np.split(raw_NE, [width], axis=1))
  stats = keys.KeyStats(recipe, pooled_ND.mean(axis=0), pooled_ND.std(axis=0), 1.0, encoder=encoder)
  if recipe.state_scale == "spread":
    stats = dataclasses.replace(stats, state_mean=state_NP.mean(axis=0), state_std=state_NP.std(axis=0))
  if recipe.projection_dim and recipe.projection == "pca":
    stats = _with_components(stats, pooled_ND)
  episode_N = np.repeat(np.arange(len(observations)), [len(o) for o in observations])
  keys_NE = np.asarray(keys.make_key(pooled_ND, state_NP, stats, stats.params))
  return dataclasses.replace(stats, unit_distance=keys.unit_distance(keys_NE, episode_N))


def light_encoder(recipe: keys.KeyRecipe, model: Pi0Config, weights: str) -> tuple[keys.KeyRecipe, Params]:
  """Returns the recipe with its encoder named, and the encoder's parameters.

  Args:
    weights: torchvision's mobilenet_v3_small as .safetensors; '' leaves them random. The layers behind are random.
  """
  # The generator that compiles fastest; the parameters are kept with the statistics.
  params = jax.jit(keys.light_encoder(recipe, model).init)(jax.random.key(LIGHT_SEED, impl="rbg"))
  if weights:
    params = mobilenet_torch.with_trunk(params, head_backbone.read_safetensors(weights))
  name = f"{'torchvision' if weights else 'random'}-{feature_cache.fingerprint(params)[:8]}"
  return dataclasses.replace(recipe, weights=name), params


def _with_components(stats: keys.KeyStats, pooled_ND: np.ndarray) -> keys.KeyStats:
  standardized_ND = (pooled_ND - stats.mean) / np.maximum(stats.std, keys.MIN_STD)
  components = keys.principal_components(standardized_ND, stats.recipe.projection_dim)
  recipe = dataclasses.replace(stats.recipe, projection_dim=components.shape[1])
  return dataclasses.replace(stats, recipe=recipe, components=components)


def demonstrations(data_dir, kept: pipeline.Places | None = None) -> Iterator[list[dict]]:
  """Yields some evenly spaced raw observations of each of some demonstrations, from all over the data, of those kept.

  A data set of several tasks has one after the other: its first episodes alone would be of one task.
  """
  files = episodes.episode_files(data_dir)
  if kept is not None:
    files = [path for path in files if any(path == place for place, _ in kept)]
  files = files[:: max(1, len(files) // EPISODES)]
  for episode in itertools.islice(pipeline.read_kept(files, kept), EPISODES):
    frames = np.linspace(0, len(episode) - 1, FRAMES_PER_EPISODE).astype(int)
    yield [{"image": {name: images[i] for name, images in episode.images.items()},
            "state": episode.state[i], "prompt": episode.prompt} for i in frames]


def _keys(policy: Policy, observations: Sequence[Sequence[dict]]) -> np.ndarray:
  """Returns the keys float32[N, E] of all observations, episode after episode."""
  flat = [observation for episode in observations for observation in episode]
  parts = [np.asarray(policy.encode(part).key_BE)[: len(part)]
           for part in (flat[i : i + BATCH] for i in range(0, len(flat), BATCH))]
  return np.concatenate(parts)


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status of the command."""
  parser = argparse.ArgumentParser(description="Measures where a policy's keys lie.")
  parser.add_argument("--policy", required=True, type=pathlib.Path, help="directory of the policy")
  parser.add_argument("--data", required=True, type=pathlib.Path, help="directory of its demonstrations")
  parser.add_argument("--name", default="", help="of these keys beside the policy's own")
  parser.add_argument("--source", default="hidden", choices=sorted(keys.SOURCES))
  parser.add_argument("--pool", default="mean", choices=keys.POOLS)
  parser.add_argument("--state_weight", default=1.0, type=float, help="of proprioception; 0 leaves it out")
  parser.add_argument("--state_scale", default="policy", choices=keys.STATE_SCALES,
                      help="proprioception as the policy sees it, or by its spread over the demonstrations")
  parser.add_argument("--projection", default="random", choices=keys.PROJECTIONS)
  parser.add_argument("--projection_dim", default=0, type=int, help="0 keeps the features whole")
  parser.add_argument("--light_weights", default="", help="torchvision's mobilenet_v3_small.safetensors; '': random")
  flags = parser.parse_args(argv)
  try:
    recipe = keys.KeyRecipe(flags.source, flags.state_weight, flags.projection_dim, flags.pool, flags.projection,
                            state_scale=flags.state_scale)
    keys.stats_path(flags.policy, flags.name)  # a name that cannot be is refused before any work
    stats = calibrate(flags.policy, list(demonstrations(flags.data)), recipe, light_weights=flags.light_weights)
  except errors.Pi0RagError as error:
    print(f"calibrate: {error}", file=sys.stderr)
    return 2
  stats.save(flags.policy, flags.name)
  print(f"{flags.policy}: keys '{stats.recipe.name}', unit distance {stats.unit_distance:.4f}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
