"""RoboVLMs' LSTM head on a frozen backbone, for LIBERO's seven actions.

`--config=configs/robovlms_lstm.py` reads PaliGemma's features, `...py:light` those of a small convolutional encoder
that runs on a CPU, and `...py:debug` trains a smaller head on synthetic data in seconds.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import mobile_vla_lstm


def get_config(variant: str = "") -> ConfigDict:
  """Returns the configuration; entries that are not here are those of mobile_vla_lstm.

  Args:
    variant: what follows the file's name and a colon: 'light', 'debug' or nothing.
  """
  config: Any = mobile_vla_lstm.get_config(variant).copy_and_resolve_references().unlock()
  config.name = "robovlms_lstm"
  config.head = ConfigDict()
  config.head.preset = "robovlms"  # 4 layers of 1024, a window of 16, chunks of 10
  if variant == "debug":
    config.head.update({"hidden": 128, "layers": 1, "readout_dims": (128,)})
    return config.lock()

  if not variant:
    config.backbone.openpi = "pi05_libero"
  config.data = ({"path": "data/libero"},)  # openpi's LeRobot conversion
  config.fields.state, config.fields.actions = "state", "actions"
  config.fields.cameras = ConfigDict({"base_0_rgb": "image", "left_wrist_0_rgb": "wrist_image"})
  config.asset_id = "libero"
  config.quantile_norm = True  # RoboVLMs scales motions by their 1 % and 99 % quantiles
  config.gripper_closed, config.gripper_open = 1.0, -1.0
  config.steps = 50_000
  config.learning_rate = 1e-4
  config.warmup_steps = 1_000
  config.validate_every = 2_500
  return config.lock()
