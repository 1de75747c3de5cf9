"""Adapters for pi0 on LIBERO: `python -m train.launch --config=configs/pi0_libero_lora.py --workdir=DIR`.

Give the data as `--config.data="({'path': 'data/libero'},)"`, a LeRobot data set with openpi's columns or others named
in `columns`. One's own robot: `--config.openpi=configs/my_robot.py`.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import openpi_finetune


def get_config(variant: str = "") -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`."""
  config: Any = openpi_finetune.adapters(openpi_finetune.base("pi0_libero_lora", "pi0_libero"))
  if openpi_finetune.is_debug(variant):
    openpi_finetune.debug(config)
    config.columns = ConfigDict(openpi_finetune.DEBUG_LIBERO_COLUMNS)
  return config.lock()
