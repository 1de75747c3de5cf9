"""A tiny configuration and a tiny synthetic data set that training can fit in seconds."""

import shutil
from unittest import mock

import numpy as np
from ml_collections import ConfigDict

from configs import panda_small
from pi0rag_jax.data.episodes import Episode, episode_path, write_episodes
from train import loop

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")
PIXELS, HORIZON, FRAMES = 8, 4, 12


def make_config(data_dir, **overrides) -> ConfigDict:
  """Returns panda_small shrunk to one layer, 8 px pictures and a few steps."""
  config = panda_small.get_config().copy_and_resolve_references()
  config.unlock()
  config.data, config.cache = ({"path": str(data_dir)},), "memory"
  model = config.model
  model.action_horizon, model.image_size, model.max_token_len, model.vocab_size = HORIZON, (PIXELS, PIXELS), 8, 32
  model.unroll = False
  model.siglip.update({"width": 8, "depth": 1, "mlp_dim": 8, "num_heads": 1, "patch_size": 4})
  shared = {"width": 8, "depth": 1, "mlp_dim": 8, "num_heads": 1, "num_kv_heads": 1, "head_dim": 8}
  model.paligemma.update(shared)
  model.expert.update(shared)
  config.update({"steps": 4, "batch_size": 4, "warmup_steps": 2, "log_every": 2, "validate_every": 2})
  config.update({"validation_batches": 1, "validation_fraction": 0.25, "denoising_steps": 2})
  config.update(overrides)
  return config.lock()


def make_episode(seed: int, frames: int = FRAMES, **changes) -> Episode:
  """Returns an episode whose label follows from its state: a chunk that moves towards the target."""
  rng = np.random.default_rng(seed)
  target_F3 = np.repeat(rng.uniform(-0.01, 0.01, (1, 3)), frames, axis=0).astype(np.float32)
  state = rng.normal(size=(frames, 10)).astype(np.float32)
  state[:, :3] = target_F3
  action_FA = np.concatenate([target_F3, np.zeros((frames, 1)), rng.integers(0, 2, (frames, 1))], axis=1)
  fields = {
    "images": {name: rng.integers(0, 255, (frames, PIXELS, PIXELS, 3), dtype=np.uint8) for name in CAMERAS},
    "state": state,
    "actions": action_FA.astype(np.float32),
    "action_chunks": np.repeat(action_FA[:, None], HORIZON, axis=1).astype(np.float32),
    "privileged": {
      "target_position": target_F3,
      "target_yaw": np.zeros(frames, np.float32),
      "goal_position": target_F3[:, :2],
      "grasped": action_FA[:, 4].astype(np.float32),
    },
    "prompt": f"pick up the {'red' if seed % 2 else 'blue'} cube",
    "task": "pick_and_place",
    "condition": "nominal",
    "renderer": "raycast",
    "seed": seed,
    "success": True,
  }
  return Episode(**(fields | changes))


def write_data(folder, episodes: int = 6):
  """Returns `folder` with that many episode files."""
  for seed in range(episodes):
    write_episodes(episode_path(folder, seed), [make_episode(seed)])
  return folder


def train(config, workdir, *, killed, at: int) -> None:
  """Trains to the end; `killed` becomes the workdir as a process killed after step `at`, which it logs, leaves it."""
  real = loop.log_training

  def log_training(writer, clock, done, pending):
    real(writer, clock, done, pending)
    if done == at:
      shutil.copytree(workdir, killed)

  with mock.patch.object(loop, "log_training", log_training):
    loop.train_and_evaluate(config, workdir)
