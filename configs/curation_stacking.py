"""Curation of flawed demonstrations of stacking; `configs/curation_panda.py` explains every entry."""

from ml_collections import ConfigDict

from configs import curation_panda


def get_config() -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.rollouts.episodes=50`."""
  return curation_panda.of_task("stacking", data_dir="data/stacking_flawed")
