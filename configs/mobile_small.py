"""A small pi0 for the mobile manipulator's ten tasks (`--world=mobile`), from the front and the gripper's camera.

Make its data first, as `make_data` says: 1,000 episodes, 400 of navigation, 300 of manipulation, 300 of both. Drives
and drawers are learned so; grasps and putting things down need more demonstrations, with which `:things` trains on.

    python -m train.launch --config=configs/mobile_small.py --workdir=runs/mobile_first
    python -m train.launch --config=configs/mobile_small.py:things --workdir=runs/mobile_small
"""

from typing import Any

from ml_collections import ConfigDict

from configs import small_from_scratch
from pi0rag_jax.errors import unknown_name


def get_config(variant: str = "") -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`."""
  if variant not in ("", "things"):
    raise unknown_name("variant of the configuration", variant, ("things",))
  config: Any = small_from_scratch.get_config().unlock()
  config.name = "mobile_small"
  config.robot = "mobile"
  config.model.state_dim, config.model.action_dim = 7, 5
  config.model.max_token_len = 16  # "put the bottle on the living room table"
  config.make_data = ("python -m pi0rag_jax.worlds.collect --world=mobile --plan=1000 --pictures=images"
                      " --out=data/mobile")
  config.data = ({"path": "data/mobile"},)
  config.columns = ConfigDict({
    "image": {name: f"observation.images.{name}" for name in config.model.image_keys},
    "state": "observation.state", "actions": "action"})
  config.auxiliary_targets = ("privileged.things",)  # where what the task is about now is, as the base sees it
  config.steps, config.batch_size = 8_000, 48
  config.execute_steps = 5
  config.validate_every = 1_000
  config.threads = 1
  if variant == "things":
    config.init_checkpoint = "runs/mobile_first/policy/params"
    config.text_tokenizer = "runs/mobile_first/tokenizer.model"
    config.data = (*config.data, {"path": "data/mobile_things"})
    config.learning_rate, config.steps = 7e-4, 3_500
    config.make_data += ("; python -m pi0rag_jax.worlds.collect --world=mobile --tasks=pick_up,place --episodes=400"
                         " --seed=20000 --pictures=images --out=data/mobile_things")
  return config.lock()
