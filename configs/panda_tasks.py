"""The shipped policy of four tasks: the architecture of `panda_small`, taught by prompts what to do."""

from typing import Any

from ml_collections import ConfigDict

from configs import panda_small


def get_config() -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`."""
  config: Any = panda_small.get_config().unlock()
  config.name = "panda_tasks"
  config.model.max_token_len = 16  # the longest prompt has 12 words
  config.data = ({"path": "data/panda_tasks"},)
  config.make_data = (
    "while read task seed episodes; do python -m pi0rag_jax.sim.collect --task=$task --seed=$seed"
    " --episodes=$episodes --processes=2 --out=data/panda_tasks/$task; done <<< 'pick_and_place 0 1500\n"
    "stacking 0 1500\n"
    "insertion 0 1069\npouring 0 661\npouring 1000 360'")
  # How to look for a cube was learned once; the words for it are new.
  config.init_checkpoint = "pi0rag_jax/assets/panda_small/params"
  config.steps = 22_000
  config.batch_size = 48
  config.validate_every = 1000
  return config.lock()
