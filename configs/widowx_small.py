"""The shipped policy of the WidowX's four tasks: the architecture of `panda_small`, from the pictures of two cameras.

Make its data first, as `make_data` says.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import small_from_scratch

TASKS = ("spoon_on_towel", "carrot_on_plate", "stack_cube", "eggplant_in_basket")


def get_config() -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`."""
  config: Any = small_from_scratch.get_config().unlock()
  config.name = "widowx_small"
  config.robot = "widowx"
  config.model.state_dim = config.model.action_dim = 7
  config.model.action_horizon = 8  # 1.6 s
  config.data = ({"path": "data/widowx"},)
  config.make_data = (f"python -m pi0rag_jax.worlds.collect --world=widowx --tasks={','.join(TASKS)} --episodes=144"
                      " --pictures=images --out=data/widowx")
  config.columns = ConfigDict({
    "image": {name: f"observation.images.{name}" for name in config.model.image_keys},
    "state": "observation.state", "actions": "action"})
  config.auxiliary_targets = ("privileged.things",)
  config.steps, config.batch_size = 3_000, 32
  config.execute_steps = 4
  config.validate_every = 500
  config.threads = 1
  return config.lock()
