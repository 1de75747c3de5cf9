"""The arena's policy: `metaworld_small` trained on, with a head that says where things are, and with more
demonstrations of the five tasks whose things are small.

    python -m train.launch --config=configs/metaworld_arena.py:longer --workdir=runs/metaworld_longer
    python -m train.launch --config=configs/metaworld_arena.py:things --workdir=runs/metaworld_things
    python -m train.launch --config=configs/metaworld_arena.py --workdir=runs/metaworld_arena
"""

from typing import Any

from ml_collections import ConfigDict

from configs import metaworld_small
from pi0rag_jax.errors import unknown_name

VARIANTS = ("longer", "things")
SMALL_THINGS = ("push-v3", "pick-place-v3", "peg-insert-side-v3", "sweep-into-v3", "coffee-push-v3")


def get_config(variant: str = "") -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`."""
  if variant and variant not in VARIANTS:
    raise unknown_name("variant of the configuration", variant, VARIANTS)
  config: Any = metaworld_small.get_config().unlock()
  config.name = "metaworld_arena"
  config.learning_rate = 7e-4
  if variant == "longer":
    config.init_checkpoint, config.steps = "pi0rag_jax/assets/metaworld_small/params", 6_000
    return config.lock()
  config.auxiliary_targets = ("privileged.things",)  # which `worlds.collect` keeps
  if variant == "things":
    config.init_checkpoint, config.steps = "runs/metaworld_longer/policy/params", 5_000
    return config.lock()
  config.init_checkpoint, config.steps = "runs/metaworld_things/policy/params", 8_000
  config.data = (*config.data, {"path": "data/metaworld_small_things"})
  config.make_data += ("; python -m pi0rag_jax.worlds.collect --world=metaworld --tasks=" + ",".join(SMALL_THINGS)
                       + " --episodes=200 --seed=1000 --pictures=images --out=data/metaworld_small_things")
  return config.lock()
