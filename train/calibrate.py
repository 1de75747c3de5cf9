"""Measures where a policy's keys lie: `python -m train.calibrate --policy=DIR --data=DIR`.

Writes `key_stats.json` into the policy directory: mean and spread of the pooled prefix over demonstrations, and
the unit distance, by which every distance of retrieval is divided.
"""

import argparse
import itertools
import pathlib
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from pi0rag_jax import errors
from pi0rag_jax.data import episodes
from pi0rag_jax.policy import keys
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.policy.spec import PolicySpec

EPISODES = 150  # of the demonstrations; more changes the third digit
FRAMES_PER_EPISODE = 12
BATCH = 64


def calibrate(directory, observations: Sequence[Sequence[dict]], recipe: keys.KeyRecipe) -> keys.KeyStats:
  """Returns the key statistics of the policy in `directory`.

  Args:
    observations: per episode, some of its raw observations.
  """
  width = keys.source_width(recipe, PolicySpec.load(directory).model)
  raw = keys.KeyStats.identity(keys.KeyRecipe(recipe.source, state_weight=0.0), width)
  policy = Policy.load(directory, key_stats=raw)
  pooled_ND = _keys(policy, observations) * np.sqrt(width)  # a key's prefix block is scaled by 1 / sqrt(D)
  stats = keys.KeyStats(recipe, pooled_ND.mean(axis=0), pooled_ND.std(axis=0), 1.0)
  episode_N = np.repeat(np.arange(len(observations)), [len(o) for o in observations])
  keys_NE = _keys(Policy.load(directory, key_stats=stats), observations)
  return keys.KeyStats(recipe, stats.mean, stats.std, unit_distance(keys_NE, episode_N))


def unit_distance(keys_NE: np.ndarray, episode_N: np.ndarray) -> float:
  """Returns the median distance from a key to the nearest key of another episode."""
  squared_N = np.square(keys_NE).sum(axis=1)
  nearest_N = np.empty(len(keys_NE))
  for i, (key_E, episode) in enumerate(zip(keys_NE, episode_N)):
    squared = squared_N + squared_N[i] - 2 * keys_NE @ key_E
    nearest_N[i] = np.sqrt(max(squared[episode_N != episode].min(), 0.0))
  return float(np.median(nearest_N))


def demonstrations(data_dir) -> Iterator[list[dict]]:
  """Yields some evenly spaced raw observations of each of the first demonstrations."""
  files = episodes.episode_files(data_dir)
  for episode in itertools.islice(itertools.chain.from_iterable(map(episodes.read_episodes, files)), EPISODES):
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
  parser.add_argument("--source", default="hidden", choices=sorted(keys.SOURCES))
  parser.add_argument("--state_weight", default=1.0, type=float)
  parser.add_argument("--projection_dim", default=0, type=int)
  flags = parser.parse_args(argv)
  try:
    recipe = keys.KeyRecipe(flags.source, flags.state_weight, flags.projection_dim)
    stats = calibrate(flags.policy, list(demonstrations(flags.data)), recipe)
  except errors.Pi0RagError as error:
    print(f"calibrate: {error}", file=sys.stderr)
    return 2
  stats.save(flags.policy)
  print(f"{flags.policy}: keys '{recipe.name}', unit distance {stats.unit_distance:.4f}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
