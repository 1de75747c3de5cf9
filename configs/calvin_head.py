"""Heads on a frozen backbone for the 34 tasks of the play table (`--world=calvin`), from the data of `calvin_small`.

`--config=configs/calvin_head.py` is RoboVLMs' LSTM (window 16, chunk 10), `...py:fc`, `...py:gpt` and `...py:discrete`
are its other designs: `fc` and `discrete` see one step, and the latter has OpenVLA's bins, though all of them at once.
All read the tokens of `calvin_small`'s vision-language model: means over a picture do not say where things are. Their
sizes are those of two CPU cores; `--config.head.hidden=1024 --config.head.layers=4` is RoboVLMs' own.

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
  "fc": {"name": "mlp", "window": 1, "hidden_dims": (512, 256)},
  "gpt": {"name": "transformer", "window": WINDOW, "width": 256, "layers": 3, "num_heads": 4, "dropout": 0.1},
  "discrete": {"name": "discrete", "window": 1, "hidden_dims": (512, 256)},
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
  config.backbone.pool = "tokens"
  config.feature_cache, config.feature_dtype = "data/features", "float16"
  config.fields.cameras = ConfigDict({name: f"observation.images.{name}" for name in model.image_keys})
  config.data = calvin_small.get_config("chains").data
  config.robot, config.asset_id = "panda", "calvin"
  config.quantile_norm = variant == "discrete"  # bins are from -1 to 1
  config.stride = 4  # 0.2 s
  config.validate_every, config.best_by = 500, "motion_error"  # the loss of bins rises while their centres get better
  # Windows; one of them has 16 steps where there is a history.
  config.batch_size, config.steps = (256, 4_000) if HEADS[variant].get("window") == 1 else (32, 2_500)
  return config.lock()
