"""MetaWorld's tasks with a frozen small policy, and a memory that learns from take-overs forward in time.

    python -m eval.sweep --config=configs/metaworld.py --out=DIR
"""

from ml_collections import ConfigDict

from configs import metaworld_small, quickstart


def forward_in_time(config: ConfigDict) -> None:
  """Lets the memory learn what a person could teach: take-overs in the same episode, some time after it went
  wrong, and of them what was done, without labels of other moments.
  """
  config.stream.learning.taught_by = "takeover"
  config.stream.learning.corrections = ConfigDict({"path_before": 3, "anchors_between": True})


def get_config() -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.evaluation.episodes=50`."""
  config = quickstart.get_config().unlock()
  config.policy = "metaworld_small"
  config.world = ConfigDict({"id": "metaworld"})
  config.task = ""
  config.conditions = tuple(f"{task}/nominal" for task in metaworld_small.LEARNED)
  config.stream.episodes = 250
  config.stream.checkpoints = (50,)
  config.stream.corrected_max = 250
  forward_in_time(config)
  config.evaluation.policies = (
      {"name": "base", "start": "new"}, {"name": "base_z0", "start": "zero"},
      {"name": "memory", "steering": "residual"})
  config.evaluation.clips = 2
  return config.lock()
