"""All of pi0, sharded over the devices: `python -m train.launch --config=configs/pi0_full_fsdp.py --workdir=DIR`.

Parameters, average and optimizer state are 16 bytes each parameter, 52 GB in all: split over the devices, they need
about that much together, and the activations of the batch beside it.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import openpi_finetune


def get_config(variant: str = "") -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`."""
  config: Any = openpi_finetune.base("pi0_full_fsdp", "pi0_libero")
  config.parallel = "fsdp"
  if openpi_finetune.is_debug(variant):
    openpi_finetune.debug(config)
    config.columns = ConfigDict(openpi_finetune.DEBUG_LIBERO_COLUMNS)
  return config.lock()
