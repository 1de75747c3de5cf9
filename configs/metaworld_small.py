"""The shipped policy of 17 MetaWorld tasks: the architecture of `panda_small`, from the pictures of two cameras.

Make its data first, as `make_data` says. Twelve of the tasks are those that a memory learns in, five are held out of
that (`configs/metaworld.py`).
"""

from typing import Any

from ml_collections import ConfigDict

from configs import small_from_scratch

LEARNED = ("reach-v3", "push-v3", "pick-place-v3", "door-open-v3", "drawer-open-v3", "drawer-close-v3",
           "button-press-topdown-v3", "peg-insert-side-v3", "window-open-v3", "window-close-v3", "sweep-into-v3",
           "coffee-push-v3")
HELD_OUT = ("door-close-v3", "faucet-open-v3", "handle-press-v3", "plate-slide-v3", "coffee-button-v3")


def get_config(variant: str = "") -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`."""
  config: Any = small_from_scratch.get_config(variant).unlock()
  config.name = "metaworld_small"
  config.robot = "metaworld"
  config.model.state_dim = config.model.action_dim = 4
  if not variant:
    config.data = ({"path": "data/metaworld"},)
  config.make_data = (f"python -m pi0rag_jax.worlds.collect --world=metaworld --tasks={','.join(LEARNED + HELD_OUT)}"
                      " --episodes=50 --pictures=images --out=data/metaworld")
  if not variant:
    config.columns = ConfigDict({
      "image": {name: f"observation.images.{name}" for name in config.model.image_keys},
      "state": "observation.state", "actions": "action"})
  config.steps, config.batch_size = 4_500, 48
  config.execute_steps = 8
  config.validate_every = 1_500
  config.threads = 1
  return config.lock()
