"""A tiny data set of the project's own format: J episodes of different lengths, every second one flawed and failed."""

import h5py
import numpy as np

from pi0rag_jax.data.episodes import Episode, episode_path, group_name, write_episodes
from pi0rag_jax.data.formats import open_dataset


def make_episode(seed: int, **changes) -> Episode:
  """Returns an episode of 4 + seed frames whose pictures and state hold the seed."""
  frames = 4 + seed
  fields = {
    "images": {"base_0_rgb": np.full((frames, 8, 8, 3), seed, np.uint8)},
    "state": np.full((frames, 3), seed, np.float32),
    "actions": np.full((frames, 2), seed, np.float32),
    "action_chunks": np.full((frames, 4, 2), seed, np.float32),
    "privileged": {},
    "prompt": "pick up the cube", "task": "t", "condition": "nominal", "renderer": "raycast",
    "seed": seed, "success": seed % 2 == 0, "flaw": "near_miss" if seed % 2 else "clean",
  }
  return Episode(**(fields | changes))


def write(folder, episodes: int = 5, rewards=(), **changes):
  """Returns the data set of so many episode files in `folder`.

  Args:
    rewards: of each episode per frame, None for none; missing frames have 0.
    changes: of every episode.
  """
  for seed in range(episodes):
    write_episodes(episode_path(folder, seed), [make_episode(seed, **changes)])
  for seed, values in enumerate(rewards):
    with h5py.File(episode_path(folder, seed), "a") as file:
      if values is not None:
        padded = np.pad(np.asarray(values, np.float32), (0, 4 + seed - len(values)))
        file.create_dataset(f"{group_name(seed)}/next.reward", data=padded)
  return open_dataset(folder)
