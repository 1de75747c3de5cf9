"""The shipped policy of gym-aloha's cube: two arms' joints relative to the state, from one picture of 128 px.

Make its data first, as `make_data` says.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import small_from_scratch


def get_config() -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`."""
  config: Any = small_from_scratch.get_config().unlock()
  config.name = config.asset_id = "aloha_small"
  config.openpi = "pi0_aloha"  # the robot, its units, and which actions are relative to the state
  config.model.state_dim = config.model.action_dim = 14
  config.model.action_horizon = 50  # 1 s, as openpi's
  config.model.image_size = (128, 128)  # at 64 the cube has less than two pixels
  config.model.image_keys = ("base_0_rgb",)
  config.model.siglip.patch_size = 32  # 16 tokens
  config.model.max_token_len = 8
  config.cache_image_size = 128
  config.data = ({"path": "data/aloha"},)
  config.make_data = ("python -m pi0rag_jax.worlds.collect --world=aloha --tasks=transfer_cube --episodes=102"
                      " --image_size=128 --pictures=images --out=data/aloha")
  config.columns = ConfigDict({"images": {"cam_high": "observation.images.cam_high"}, "state": "observation.state",
                               "actions": "action", "prompt": "task"})
  config.auxiliary_targets = ("privileged.things",)  # else it learns the same motion for all cubes
  config.steps, config.batch_size, config.draws = 2_500, 32, 1  # the expert costs more than the prefix here
  config.execute_steps = 50  # the whole chunk, as openpi: with fewer it hesitates for good where one hand takes over
  config.validate_every = 500
  config.threads = 1
  return config.lock()
