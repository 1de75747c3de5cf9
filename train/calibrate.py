"""Measures where a policy's keys lie: `python -m train.calibrate --policy=ANY --data=DIR`.

The policy is whatever `policy.directory.load` takes, the data a set of its robot in any format. Writes `key_stats.json`
into the policy's directory, or into `--out`: mean and spread of the pooled features over demonstrations, principal
components and the light encoder where the recipe has them, and the unit distance, by which every distance of retrieval
is divided. With `--name=NAME` it writes `key_stats.NAME.json` beside it, so that one policy has several kinds of keys
to choose from: `load(DIR, key_name=NAME)`. Some recipes:

  --name=spread --state_scale=spread                     proprioception that the policy does not see counts too
  --name=camera --pool=camera                            each camera's tokens of the last layer
  --name=parts-pca --pool=parts --projection=pca --projection_dim=512
  --name=input --source=tokens                           what enters the first layer
  --name=light --source=light --pool=camera [--light_weights=mobilenet_v3_small.safetensors]
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import msgspec
import numpy as np

from pi0rag_jax import errors, schema
from pi0rag_jax.data import columns
from pi0rag_jax.data.columns import Columns
from pi0rag_jax.data.dataset import Dataset
from pi0rag_jax.models.backbones import mobilenet_torch
from pi0rag_jax.models.pi0_config import PaliGemmaConfig
from pi0rag_jax.openpi import download
from pi0rag_jax.policy import directory, feature_cache, keys
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.policy.spec import HEAD, PolicySpec
from pi0rag_jax.typing import Params
from train import head_backbone

EPISODES = 150  # of the demonstrations; more changes the third digit
FRAMES_PER_EPISODE = 12
BATCH = 64
LIGHT_SEED = 0


def calibrate(policy, observations: Sequence[Sequence[Mapping]], recipe: keys.KeyRecipe, *, light_weights: str = "",
              checkpoint=None) -> keys.KeyStats:
  """Returns the key statistics of a policy.

  Args:
    policy, checkpoint: see `directory.load`.
    observations: per episode, some of its raw observations.
    recipe: of the keys; the light encoder's `weights` are named here, and a projection by principal components has at
      most as many as there are features and, less one, observations.
    light_weights: see `light_encoder`.
  Errors: Pi0RagError for fewer than two episodes, between which distances are measured.
  """
  if len(observations) < 2:
    raise errors.Pi0RagError(f"{len(observations)} episodes of demonstrations; allowed: two or more, since keys are "
                             "compared between episodes")
  spec, where = directory.describe(policy, checkpoint)
  encoder = None
  if recipe.source == keys.LIGHT:
    recipe, encoder = light_encoder(recipe, spec.network, light_weights)
  # Only its backbone knows how many features a head reads.
  width = len(directory.build(spec, where).key_stats.mean) if spec.family == HEAD else keys.feature_width(
    recipe, spec.network)
  plain = dataclasses.replace(recipe, state_weight=1.0, projection_dim=0, state_scale="policy")
  raw = keys.KeyStats.identity(plain, width, encoder)
  raw_NE = _keys(directory.build(spec, where, key_stats=raw), observations)
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


def light_encoder(recipe: keys.KeyRecipe, model: PaliGemmaConfig, weights: str) -> tuple[keys.KeyRecipe, Params]:
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


def _keys(policy: Policy, observations: Sequence[Sequence[Mapping]]) -> np.ndarray:
  """Returns the keys float32[N, E] of all observations, episode after episode."""
  flat = [observation for episode in observations for observation in episode]
  found = []
  for part in (flat[i : i + BATCH] for i in range(0, len(flat), BATCH)):
    inputs = policy.prepare(part)
    _, encoded = policy.encode(policy.start(len(inputs["state"])), inputs)
    found.append(np.asarray(encoded.key_BE)[: len(part)])
  return np.concatenate(found)


def observations(dataset: Dataset, columns_: Columns, episodes: Sequence[int] | None = None, *, share: float = 1.0
                 ) -> list[list[dict]]:
  """Returns some evenly spaced raw observations of each of some episodes, from all over the data set.

  A data set of several tasks has one after the other: its first episodes alone would be of one task.

  Args:
    episodes: those that may be chosen; None: all.
    share: of EPISODES that are chosen, two at least.
  """
  numbers = range(dataset.num_episodes) if episodes is None else episodes
  wanted = max(round(EPISODES * share), 2)
  return [columns_.observations(dataset, int(episode), FRAMES_PER_EPISODE)
          for episode in numbers[:: max(1, len(numbers) // wanted)][:wanted]]


class _Record(msgspec.Struct):
  """What is read of a training's record.json."""

  columns: dict[str, Any] = {}


def repack_of(spec: PolicySpec, where) -> Mapping:
  """Returns robot's keys -> columns of a policy: its configuration's, what it was trained with, or the same names."""
  record = pathlib.Path(where, directory.RECORD_NAME)
  recorded = {}
  if not download.is_remote(where) and record.is_file():
    recorded = schema.read(record, _Record).columns
  return recorded or spec.data.repack or {
    "image": {camera: camera for camera in spec.cameras}, "state": "state"}


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status of the command."""
  parser = argparse.ArgumentParser(
    prog="python -m train.calibrate", description="Measures where a policy's keys lie.",
    epilog="example: python -m train.calibrate --policy=runs/mine/policy --data=recordings --name=camera --pool=camera")
  parser.add_argument("--policy", required=True, help="name, directory, gs:// address or file of the policy")
  parser.add_argument("--checkpoint", default=None, help="of a configuration, instead of its release")
  parser.add_argument("--data", required=True, type=pathlib.Path, help="data set of its robot, of any format")
  parser.add_argument("--out", default=None, type=pathlib.Path, help="folder to write to, instead of the policy's")
  parser.add_argument("--columns", default=None, type=json.loads,
                      help="JSON, robot's keys by column names, where they are not those of the policy's training")
  parser.add_argument("--fields", default={}, type=json.loads,
                      help='JSON, such as {"prompt": "instruction"} or {"default_prompt": "fold the towel"}')
  parser.add_argument("--name", default="", help="of these keys beside the policy's own")
  parser.add_argument("--source", default=None, choices=sorted(keys.SOURCES),
                      help="of the features; default: hidden, and of a head those of its backbone")
  parser.add_argument("--pool", default="mean", choices=keys.POOLS)
  parser.add_argument("--state_weight", default=1.0, type=float, help="of proprioception; 0 leaves it out")
  parser.add_argument("--state_scale", default="policy", choices=keys.STATE_SCALES,
                      help="proprioception as the policy sees it, or by its spread over the demonstrations")
  parser.add_argument("--projection", default="random", choices=keys.PROJECTIONS)
  parser.add_argument("--projection_dim", default=0, type=int, help="0 keeps the features whole")
  parser.add_argument("--light_weights", default="", help="torchvision's mobilenet_v3_small.safetensors; '': random")
  flags = parser.parse_args(argv)
  try:
    spec, where = directory.describe(flags.policy, flags.checkpoint)
    source = flags.source or ("features" if spec.family == HEAD else "hidden")
    recipe = keys.KeyRecipe(source, flags.state_weight, flags.projection_dim, flags.pool, flags.projection,
                            state_scale=flags.state_scale)
    out = flags.out or where
    if download.is_remote(out) or (flags.out is None and flags.policy in directory.shipped()):
      raise errors.Pi0RagError(f"'{out}' is not yours to write to: give --out, a folder")
    keys.stats_path(out, flags.name)  # a name that cannot be is refused before any work
    repack = flags.columns or repack_of(spec, where)
    dataset, found = columns.open_columns(
      flags.data, repack, action_columns=(repack["actions"],) if "actions" in repack else (),
      fields=columns.check_fields(flags.fields))
    stats = calibrate(flags.policy, observations(dataset, found), recipe, light_weights=flags.light_weights,
                      checkpoint=flags.checkpoint)
  except errors.Pi0RagError as error:
    print(f"calibrate: {error}", file=sys.stderr)
    return 2
  pathlib.Path(out).mkdir(parents=True, exist_ok=True)
  stats.save(out, flags.name)
  print(f"{out}: keys '{stats.recipe.name}', unit distance {stats.unit_distance:.4f}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
