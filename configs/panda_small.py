"""The shipped policy: a pi0 of about one million parameters for the simulated Panda, trained on two CPU cores."""

from typing import Any

from ml_collections import ConfigDict

from configs import openpi_finetune


def model() -> Any:
  """Returns the fields of Pi0Config: few tokens and heads, since both cost more than width on a CPU."""
  fields = ConfigDict()
  fields.action_dim = 5  # dx, dy, dz, dyaw per tick, gripper
  fields.state_dim = 10
  fields.action_horizon = 16  # 0.8 s
  fields.max_token_len = 14  # 12 words, and what the tokenizer puts before and after them
  fields.vocab_size = 128
  fields.dtype = "float32"
  fields.image_size = (64, 64)
  fields.image_keys = ("base_0_rgb", "left_wrist_0_rgb")
  fields.unroll = True  # layers this small are faster compiled one by one
  # 16 tokens a camera; the head starts from random values, since no pretrained tower is loaded.
  fields.siglip = ConfigDict(
    {"width": 96, "depth": 2, "mlp_dim": 192, "num_heads": 2, "patch_size": 16, "zero_head": False})
  shared = {"depth": 3, "num_heads": 2, "num_kv_heads": 1, "head_dim": 48}
  fields.paligemma = ConfigDict({"width": 96, "mlp_dim": 256, **shared})
  fields.expert = ConfigDict({"width": 96, "mlp_dim": 192, **shared})
  return fields


def get_config() -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`."""
  config: Any = openpi_finetune.base("panda_small", "")
  config.robot = "panda"
  config.model = model()
  config.remat = "none"
  config.center_images = True
  config.text_tokenizer = "train"  # one of the prompts

  config.data = ({"path": "data/panda"},)
  config.make_data = (
    "python -m pi0rag_jax.sim.collect --task=pick_and_place --episodes=3000 --seed=0 --processes=2"
    " --out=data/panda")
  config.columns = ConfigDict({
    "image": {name: name for name in config.model.image_keys}, "state": "state", "actions": "actions"})
  config.label_chunks = "action_chunks"  # what the expert would do; executed were disturbances, too
  config.successes_only = True
  config.asset_id = "panda_sim"
  # The gripper command and how far the tool trails its command say what the expert did last: shown them, a policy
  # repeats its last motion instead of looking (0 of 25 successes), since that is nearly always right in the labels.
  config.hidden_state_dims = (6, 7, 8, 9)
  config.approach_repeats = 1
  config.augment = False
  config.cache = "data/cache"
  config.threads = 1

  config.seed = 0
  config.steps = 14_000
  config.batch_size = 32
  config.draws = 2
  config.learning_rate = 1e-3
  config.warmup_steps = 200
  config.decay_steps = 0
  config.final_learning_rate_fraction = 0.01
  config.weight_decay = 1e-4
  config.ema_decay = 0.998
  config.auxiliary_targets = tuple(
    f"privileged/{name}" for name in ("target_position", "target_yaw", "goal_position", "grasped"))

  config.log_every = 50
  config.validate_every = 500
  config.validate_paths = True
  config.best_by = "path_error"

  config.control_hz = 20.0
  config.execute_steps = 8  # with fewer it dithers where it is not sure, with more it sees too late (results/pace)
  config.start = "zero"
  config.key_source = "hidden"
  return config.lock()
