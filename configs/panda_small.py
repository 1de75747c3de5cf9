"""The shipped policy: a pi0 of about one million parameters for the simulated Panda, trained on two CPU cores."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def _model() -> ConfigDict:
  """Returns the fields of Pi0Config: few tokens and heads, since both cost more than width on a CPU."""
  model = ConfigDict()
  model.action_dim = 5  # dx, dy, dz, dyaw per tick, gripper
  model.state_dim = 10
  model.action_horizon = 16  # 0.8 s
  model.max_token_len = 14  # 12 words, and what the tokenizer puts before and after them
  model.vocab_size = 128
  model.dtype = "float32"
  model.image_size = (64, 64)
  model.image_keys = ("base_0_rgb", "left_wrist_0_rgb")
  model.unroll = True  # layers this small are faster compiled one by one
  # 16 tokens a camera; the head starts from random values, since no pretrained tower is loaded.
  model.siglip = ConfigDict(
    {"width": 96, "depth": 2, "mlp_dim": 192, "num_heads": 2, "patch_size": 16, "zero_head": False})
  shared = {"depth": 3, "num_heads": 2, "num_kv_heads": 1, "head_dim": 48}
  model.paligemma = ConfigDict({"width": 96, "mlp_dim": 256, **shared})
  model.expert = ConfigDict({"width": 96, "mlp_dim": 192, **shared})
  return model


def get_config() -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`."""
  config = ConfigDict()
  config.name = "panda_small"
  config.kind = "flow"
  config.model = _model()
  config.init_checkpoint = ""  # a params directory to start from; '' trains from scratch
  config.text_tokenizer = "train"  # one of the prompts; or a file, as that of the policy that training starts from

  # Data.
  config.data_dir = "data/panda"
  config.make_data = (
    "python -m pi0rag_jax.sim.collect --task=pick_and_place --episodes=3000 --seed=0 --processes=2"
    " --out=data/panda")
  config.selection = placeholder(str)  # a file of selections, see pi0rag_jax/curation; None keeps all episodes
  config.asset_id = "panda_sim"  # assets/<asset_id>/norm_stats.json
  # The gripper command and how far the tool trails its command say what the expert did last: shown them, a policy
  # repeats its last motion instead of looking (0 of 25 successes), since that is nearly always right in the labels.
  config.hidden_state_dims = (6, 7, 8, 9)
  config.approach_repeats = 1  # how often more an epoch shows the frames in which the target has to be found
  config.validation_fraction = 0.05  # of the episodes
  config.split_seed = 1

  # Optimization.
  config.parallel = "pmap"  # a copy per device; 'fsdp' shards the state over the devices
  config.seed = 0
  config.steps = 14_000
  config.batch_size = 32
  config.draws = 2  # (time, noise) pairs per encoded observation: the prefix is most of the cost
  config.microbatches = 1  # parts of a batch whose gradients are accumulated
  config.schedule = "cosine"  # or 'rsqrt', 'constant'
  config.learning_rate = 1e-3
  config.warmup_steps = 200
  config.decay_steps = 0  # of the cosine, warm-up included; 0: all steps
  config.final_learning_rate_fraction = 0.01
  config.rsqrt_timescale = 10_000
  config.weight_decay = 1e-4
  config.clip_norm = 1.0
  config.ema_decay = 0.998  # of the weights that are validated and exported; 0 keeps no average
  # Privileged arrays of the episodes that an auxiliary head reads off the prefix, and the weight of its loss.
  config.auxiliary_targets = ("target_position", "target_yaw", "goal_position", "grasped")
  config.auxiliary_weight = 1.0

  # Logging, validation, checkpoints.
  config.log_every = 50
  config.validate_every = 500  # a checkpoint follows each validation; the last and the best are kept
  config.validation_batches = 16
  config.best_by = "path_error_mm"
  config.patience = 0  # validations without a better one after which training stops; 0 never does
  config.wandb_project = ""  # of Weights & Biases; '' writes TensorBoard's files alone

  # How the policy is run.
  config.control_hz = 20.0
  config.execute_steps = 4  # of the chunk: replanning often was the largest single gain
  config.denoising_steps = 10
  config.position_dims = (0, 1, 2)
  config.gripper_dims = (4,)
  return config.lock()
