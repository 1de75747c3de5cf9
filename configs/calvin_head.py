"""Heads on a frozen backbone for the 34 tasks of the play table (`--world=calvin`), from the data of `calvin_small`.

`--config=configs/calvin_head.py` is RoboVLMs' LSTM (window 16, chunk 10), `...py:fc`, `...py:gpt` and `...py:discrete`
are its other designs; the last has OpenVLA's bins, though all of them at once. All read the vision-language model of
`calvin_small`, a vector for every camera. Their sizes are those of two CPU cores:
`--config.head.hidden=1024 --config.head.layers=4` is RoboVLMs' own.

    python -m train.launch --config=configs/calvin_head.py:gpt --workdir=runs/calvin_gpt
"""

from typing import Any

from ml_collections import ConfigDict

from configs import calvin_small, mobile_vla_lstm
from pi0rag_jax.errors import unknown_name

WINDOW, CHUNK = 16, 10
BACKBONE = "pi0rag_jax/assets/calvin_small"
HEADS = {
  "": {"preset": "robovlms", "hidden": 256, "layers": 2, "readout_dims": (256,)},
  "fc": {"name": "mlp", "window": WINDOW, "hidden_dims": (512, 256)},
  "gpt": {"name": "transformer", "window": WINDOW, "width": 256, "layers": 3, "num_heads": 4, "dropout": 0.1},
  "discrete": {"name": "discrete", "window": WINDOW, "hidden_dims": (512, 256)},
}


def get_config(variant: str = "") -> ConfigDict:
  """Returns the configuration; entries that are not here are those of mobile_vla_lstm.

  Args:
    variant: what follows the file's name and a colon, one of HEADS.
  """
  if variant not in HEADS:
    raise unknown_name("variant of the configuration", variant, tuple(HEADS)[1:])
  config: Any = mobile_vla_lstm.get_config("sim").copy_and_resolve_references().unlock()
  config.name = f"calvin_{variant or 'lstm'}"
  config.head = ConfigDict({**HEADS[variant], "chunk": CHUNK, "gripper_dims": (-1,)})
  model: Any = calvin_small.get_config().model
  mobile_vla_lstm.of_small(config, BACKBONE, model)
  config.feature_cache = "data/features"
  config.fields.cameras = ConfigDict({name: f"observation.images.{name}" for name in model.image_keys})
  config.data = calvin_small.get_config("chains").data
  config.robot, config.asset_id = "panda", "calvin"
  config.quantile_norm = variant == "discrete"  # bins are from -1 to 1
  config.stride = 4  # 0.2 s
  config.steps, config.validate_every = 4_000, 500
  return config.lock()
