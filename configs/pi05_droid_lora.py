"""Adapters for pi0.5 on DROID data: `python -m train.launch --config=configs/pi05_droid_lora.py --workdir=DIR`."""

from typing import Any

from ml_collections import ConfigDict

from configs import openpi_finetune


def get_config(variant: str = "") -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`."""
  config: Any = openpi_finetune.adapters(openpi_finetune.base("pi05_droid_lora", "pi05_droid_finetune"))
  if openpi_finetune.is_debug(variant):
    openpi_finetune.debug(config)
    config.data = ({"path": "debug_seven_joints"},)
    config.update({"model": {"max_token_len": 96}})  # the state is text in the prompt
    config.columns = ConfigDict({
      "observation/exterior_image_1_left": "front", "observation/wrist_image_left": "wrist",
      "observation/joint_position": "state[0:7]", "observation/gripper_position": "state[7:8]", "actions": "actions"})
  return config.lock()
