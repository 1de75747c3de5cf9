"""gym-aloha's two arms with a frozen policy and a memory: absolute joints, chunks of up to a second.

    python -m eval.sweep --config=configs/aloha.py --out=DIR
    python -m eval.sweep --config=configs/aloha.py --config.policy=pi0_aloha_sim --out=DIR
"""

from typing import Any

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.evaluation.episodes=50`."""
  config: Any = quickstart.get_config().unlock()
  config.policy, config.start = "aloha_small", "zero"
  config.world = ConfigDict({"id": "aloha"})
  config.task = "transfer_cube"
  config.conditions = ("nominal", "camera_shift", "actuator_delay")
  config.stream.episodes = 250
  config.stream.checkpoints = (50,)
  config.stream.corrected_max = 250
  config.evaluation.policies = (
      {"name": "base", "start": "new"}, {"name": "base_z0", "start": "zero"},
      {"name": "memory", "steering": "residual"})
  config.evaluation.clips = 2
  config.slots = 12
  return config.lock()
