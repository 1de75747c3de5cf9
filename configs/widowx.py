"""SimplerEnv's tasks of a WidowX with a frozen policy and a memory: 24 trials of each task in each setting.

    python -m eval.sweep --config=configs/widowx.py --out=DIR

The settings are those of RoboVLMs' tables; `--config.conditions="('stack_cube/camera_shift',)"` takes others.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import quickstart, widowx_small

SETTINGS = ("simple", "unseen_distractor", "unseen_background", "unseen_target")
TRIALS = 24


def get_config() -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.stream.episodes=240`."""
  config: Any = quickstart.get_config().unlock()
  config.policy, config.start = "widowx_small", "zero"
  config.world = ConfigDict({"id": "widowx"})
  config.task = ""
  config.conditions = tuple(f"{task}/{setting}" for setting in SETTINGS for task in widowx_small.TASKS)
  config.stream.episodes = config.stream.corrected_max = 2 * TRIALS
  config.evaluation.episodes = TRIALS
  config.evaluation.latency_episodes = config.evaluation.clips = 0
  config.evaluation.policies = (
      {"name": "base", "start": "new"}, {"name": "base_z0", "start": "zero"},
      {"name": "memory", "steering": "residual"})
  config.slots = 12
  return config.lock()
