"""A small pi0 for the 34 tasks of the play table (`--world=calvin`), from the static and the wrist camera.

Make its data first, as `make_data` says: 30 episodes of each task. Each begins with the arm at rest; in chains a task
begins where the one before it ended, with which `:chains` trains on.

    python -m train.launch --config=configs/calvin_small.py --workdir=runs/calvin_first
    python -m train.launch --config=configs/calvin_small.py:chains --workdir=runs/calvin_small
    python -m eval.chains --world=calvin --policy=runs/calvin_small/policy --out=runs/chains
"""

from typing import Any

from ml_collections import ConfigDict

from configs import small_from_scratch
from pi0rag_jax.errors import unknown_name

BLOCKS = ("red", "blue", "pink")
TASKS = (
  *(f"{verb}_{block}_block_{side}" for verb in ("rotate", "push") for block in BLOCKS for side in ("right", "left")),
  *(f"lift_{block}_block_{place}" for block in BLOCKS for place in ("table", "slider", "drawer")),
  "move_slider_left", "move_slider_right", "open_drawer", "close_drawer", "place_in_slider", "place_in_drawer",
  "push_into_drawer", "stack_block", "unstack_block", "turn_on_lightbulb", "turn_off_lightbulb", "turn_on_led",
  "turn_off_led")


def get_config(variant: str = "") -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`."""
  if variant not in ("", "chains"):
    raise unknown_name("variant of the configuration", variant, ("chains",))
  config: Any = small_from_scratch.get_config().unlock()
  config.name = "calvin_small"
  config.robot = "panda"
  config.model.state_dim, config.model.action_dim = 10, 5
  config.model.max_token_len = 16  # "pick up the red block in the sliding cabinet"
  config.make_data = (f"python -m pi0rag_jax.worlds.collect --world=calvin --tasks={','.join(TASKS)} --episodes=30"
                      " --pictures=images --out=data/calvin")
  config.data = ({"path": "data/calvin"},)
  config.columns = ConfigDict({
    "image": {name: f"observation.images.{name}" for name in config.model.image_keys},
    "state": "observation.state", "actions": "action"})
  config.auxiliary_targets = ("privileged.things",)  # what the task is about now, and where it belongs
  config.hidden_state_dims = (6, 7, 8, 9)  # what the expert did last, see panda_small
  config.steps, config.batch_size = 10_000, 48
  config.execute_steps = 8
  config.validate_every = 1_000
  config.threads = 1
  if variant == "chains":
    config.init_checkpoint = "runs/calvin_first/policy/params"
    config.text_tokenizer = "runs/calvin_first/tokenizer.model"
    config.data = (*config.data, {"path": "data/calvin_chains"})
    config.learning_rate, config.steps = 7e-4, 6_000
    config.make_data += ("; python -m pi0rag_jax.worlds.collect --world=calvin --tasks=chain --episodes=300"
                         " --seed=20000 --pictures=images --out=data/calvin_chains")
  return config.lock()
