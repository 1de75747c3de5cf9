"""The arena's policy: `metaworld_small` trained on, the second time with a head that says where things are.

    python -m train.launch --config=configs/metaworld_arena.py:longer --workdir=runs/metaworld_longer
    python -m train.launch --config=configs/metaworld_arena.py --workdir=runs/metaworld_arena

About an hour and a half of one core. It succeeds in 117 of 192 episodes of the twelve tasks that a memory learns in
(z = 0, tuning seeds): in all of seven tasks, in hardly any of those with small things.
"""

from ml_collections import ConfigDict

from configs import metaworld_small
from pi0rag_jax.errors import unknown_name


def get_config(variant: str = "") -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`."""
  if variant not in ("", "longer"):
    raise unknown_name("variant of the configuration", variant, ("longer",))
  config = metaworld_small.get_config().unlock()
  config.name = "metaworld_arena"
  config.learning_rate = 7e-4
  if variant:
    config.init_checkpoint, config.steps = "pi0rag_jax/assets/metaworld_small/params", 6_000
  else:
    config.init_checkpoint, config.steps = "runs/metaworld_longer/policy/params", 5_000
    config.auxiliary_targets = ("privileged.things",)  # which `worlds.collect` keeps
  return config.lock()
