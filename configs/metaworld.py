"""MetaWorld's tasks with a frozen small policy, and a memory that learns from take-overs.

    python -m eval.sweep --config=configs/metaworld.py --out=DIR
"""

from typing import Any

from ml_collections import ConfigDict

from configs import metaworld_small, quickstart


def get_config() -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.evaluation.episodes=50`."""
  config: Any = quickstart.get_config().unlock()
  config.policy = "metaworld_small"
  config.world = ConfigDict({"id": "metaworld"})
  config.task = ""
  config.conditions = tuple(f"{task}/nominal" for task in metaworld_small.LEARNED)
  config.stream.episodes = 250
  config.stream.checkpoints = (50,)
  config.stream.corrected_max = 250
  config.evaluation.policies = (
      {"name": "base", "start": "new"}, {"name": "base_z0", "start": "zero"},
      {"name": "memory", "steering": "residual"})
  config.evaluation.clips = 2
  return config.lock()
