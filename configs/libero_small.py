"""The shipped policy of LIBERO's ten object tasks: the architecture of `panda_small` on two pictures of 96 px.

Make its data first, as `make_data` says.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import small_from_scratch


def get_config() -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`."""
  config: Any = small_from_scratch.get_config().unlock()
  config.name = "libero_small"
  config.robot = "libero"
  config.model.state_dim, config.model.action_dim = 8, 7
  config.model.image_size, config.model.siglip.patch_size = (96, 96), 24  # 16 tokens a camera
  config.cache_image_size = 96
  config.data = ({"path": "data/libero"},)
  tasks = ",".join(f"libero_object/{task}" for task in range(10))
  config.make_data = (f"python -m pi0rag_jax.worlds.collect --world=libero --tasks={tasks} --episodes=12"
                      " --renderer=plain --image_size=96 --pictures=images --out=data/libero")
  config.columns = ConfigDict({
    "observation/image": "observation.images.image", "observation/wrist_image": "observation.images.wrist_image",
    "observation/state": "observation.state", "actions": "action"})
  config.auxiliary_targets = ("privileged.things",)
  config.steps, config.batch_size = 4_000, 32
  config.execute_steps = 5  # as openpi's clients
  config.validate_every = 1_000
  config.threads = 1
  return config.lock()
