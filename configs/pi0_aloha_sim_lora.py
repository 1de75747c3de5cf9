"""Adapters for pi0 on simulated ALOHA: `python -m train.launch --config=configs/pi0_aloha_sim_lora.py --workdir=DIR`.

For ALOHA's own HDF5 files name what they store:
`--config.columns="{'images': {'cam_high': 'cam_high'}, 'state': 'qpos', 'actions': 'action'}"`.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import openpi_finetune


def get_config(variant: str = "") -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`."""
  config: Any = openpi_finetune.adapters(openpi_finetune.base("pi0_aloha_sim_lora", "pi0_aloha_sim"))
  if openpi_finetune.is_debug(variant):
    openpi_finetune.debug(config)
    config.data = ({"path": "debug_two_arms"},)
    config.columns = ConfigDict({"images": {"cam_high": "front"}, "state": "state", "actions": "actions"})
  return config.lock()
