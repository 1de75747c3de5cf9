"""A small policy from scratch on recordings of your own: one million parameters, two cameras at 64 px, two CPU cores.

    python -m train.launch --config=configs/small_from_scratch.py --workdir=DIR \
      --config.data="({'path': 'recordings'},)"
    python -m pi0rag_jax.serving.server --policy=DIR/policy

To make it yours, change `_columns` (see `python -m pi0rag_jax.data summary DIR`) and the sizes of state and action in
`_model`. `:debug` is the same on made-up data, half a minute.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import openpi_finetune, panda_small

STATE_DIM, ACTION_DIM = 8, 7


def _model() -> Any:
  """Returns the fields of Pi0Config: those of the shipped policy, for another robot."""
  model: Any = panda_small.model()
  model.state_dim, model.action_dim = STATE_DIM, ACTION_DIM
  model.max_token_len = 24  # the longest prompt, and what the tokenizer puts before and after it
  return model


def _columns() -> ConfigDict:
  """Returns the plain robot's entries by the data set's columns; "name[0:7]" is a part of one."""
  return ConfigDict({"image": {"base_0_rgb": "front", "left_wrist_0_rgb": "wrist"}, "state": "state",
                     "actions": "actions"})


def get_config(variant: str = "") -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`."""
  config: Any = openpi_finetune.base("small_from_scratch", "")
  config.robot = "plain"  # your own file: --config.openpi=FILE --config.init_checkpoint=none
  config.model = _model()
  config.columns = _columns()
  config.remat = "none"
  config.center_images = True
  config.text_tokenizer = "train"
  config.cache = "memory"  # a folder, where the pictures are too many
  config.cache_image_size = 64
  config.augment = False

  config.steps, config.batch_size, config.draws = 10_000, 32, 2
  config.learning_rate, config.warmup_steps, config.decay_steps = 1e-3, 200, 0
  config.final_learning_rate_fraction = 0.01
  config.weight_decay = 1e-4
  config.ema_decay = 0.998
  config.validate_every = 500
  config.validate_paths = True
  config.best_by = "path_error"
  config.start = "zero"  # the same look, the same chunk
  if openpi_finetune.is_debug(variant):
    config.data = ({"path": "debug"},)
    config.validation_fraction = 0.25
    config.steps, config.batch_size, config.warmup_steps, config.ema_decay = 100, 16, 10, 0.9
    config.log_every, config.validate_every, config.validation_batches = 50, 50, 4
    # Two layers of half the width, compiled as a loop.
    config.model.unroll = False
    config.model.siglip.update({"width": 48, "depth": 1, "mlp_dim": 96})
    for tower in ("paligemma", "expert"):
      getattr(config.model, tower).update({"width": 48, "depth": 2, "mlp_dim": 96, "head_dim": 24})
  return config.lock()
