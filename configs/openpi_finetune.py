"""What the configurations of policies have in common: openpi's recipe, and the choices that it leaves out.

`pi0_libero_lora`, `pi05_droid_lora`, `pi0_aloha_sim_lora` and `pi0_full_fsdp` fine-tune, `panda_small`, `panda_tasks`
and `small_from_scratch` start from nothing. Most take `:debug`, as `--config=configs/pi0_libero_lora.py:debug`: the
same training of a tiny model on made-up data, seconds on a CPU.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from pi0rag_jax.errors import unknown_name


def base(name: str, openpi: str) -> ConfigDict:
  """Returns the shared fields; those that are None are as the named configuration has them, see openpi/config.py.

  Args:
    name: of the configuration.
    openpi: a named configuration of openpi, or a file such as configs/my_robot.py: robot, normalization, weights and
      recipe; '' for `robot` and `family` alone.
  """
  config: Any = ConfigDict()
  config.name = name
  config.kind = "policy"
  config.openpi = openpi
  config.robot = "plain"  # of pi0rag_jax/robots, where `openpi` is ''
  config.family = "pi0"  # or pi05, pi0_fast; likewise

  # Model.
  config.model = ConfigDict()  # sizes other than those of the named configuration, as of Pi0Config
  config.lora = False  # adds adapters of openpi's sizes to both experts
  config.lora_identity = True  # fresh adapters change nothing; False starts them as openpi does
  config.freeze_image_tower = False
  config.remat = "full"  # what layers keep for the backward pass: 'none', 'dots', or 'full' for the least memory
  config.init_checkpoint = ""  # params, .npz of PaliGemma or .safetensors; '' is the named one's, 'none' a fresh start
  config.center_images = False  # fresh parameters begin by taking the data's mean colour off every picture

  # Data: {'path': ..., 'weight': ..., 'format': ...} per data set, of any format that pi0rag_jax.data reads; with
  # 'selection': 'selection.json' only the episodes that train.curate keeps; 'fields': {'prompt': ..., 'default_prompt':
  # ..., 'fps': ...} names the field of the prompt, or what the data set does not say.
  config.data = ()
  config.make_data = ""  # how the data are made, for whoever lacks them
  config.columns = ConfigDict()  # robot's keys -> columns, where the data set's differ from the named configuration's
  config.label_chunks = ""  # a field of whole chunks that are learned; '' cuts chunks from the executed actions
  # Columns: only frames in which none of them is 0 are learned. Of taught episodes, see memory export: ("taught",) with
  # label_chunks "label"; ("observed", "intervention") of what people did.
  config.frames_where = ()
  config.successes_only = False  # leaves out the episodes that failed
  config.hidden_state_dims = ()  # entries of the state that the policy must not see
  config.approach_repeats = 0  # how often more an epoch shows the frames in which the Panda has to find its object
  config.asset_id = placeholder(str)  # assets/<asset_id>/norm_stats.json
  config.norm_stats = ""  # a directory with assets/; '' computes the statistics of the training episodes
  config.text_tokenizer = ""  # a sentencepiece model; '' is PaliGemma's, 'train' makes one of the prompts
  config.action_tokenizer = ""  # of pi0-FAST: a directory; '' is the published one
  config.augment = True  # pictures, on the device, as openpi does
  # A folder for decoded pictures, made once, or 'memory'; '' reads the data set: video is slow to read at random.
  config.cache = ""
  config.cache_image_size = 0  # px, of the pictures there; 0 keeps theirs
  config.skip_bad = False  # goes on without episodes that cannot be read, and counts them
  config.validation_fraction = 0.05  # of the episodes
  config.split_seed = 1
  config.prefetch = 4  # batches read ahead
  config.threads = 2  # that read them

  # Optimization.
  config.parallel = "pmap"  # a copy per device; 'fsdp' shards the state over the devices
  config.seed = 42
  config.steps = placeholder(int)
  config.batch_size = placeholder(int)
  config.draws = 1  # (time, noise) pairs per encoded observation: of small models the prefix is most of the cost
  config.microbatches = 1  # parts of a batch whose gradients are accumulated
  config.schedule = "cosine"  # or 'rsqrt', 'constant'
  config.learning_rate = placeholder(float)
  config.warmup_steps = placeholder(int)
  config.decay_steps = placeholder(int)  # of the cosine, warm-up included; 0: all steps
  config.final_learning_rate_fraction = placeholder(float)
  config.rsqrt_timescale = 10_000
  config.weight_decay = 1e-10
  config.clip_norm = 1.0
  config.ema_decay = placeholder(float)  # of the weights that are validated and exported; 0 keeps no average
  # Columns of facts that an auxiliary head reads off the prefix, such as the simulator's truth; it is not exported.
  config.auxiliary_targets = ()
  config.auxiliary_weight = 1.0  # of its loss

  # Logging, validation, checkpoints.
  config.log_every = 100
  config.validate_every = 1_000  # a checkpoint follows each validation; the last and the best are kept
  config.validation_batches = 16
  config.validate_paths = False  # samples chunks, too: path_error, their mean cost over the executed steps
  config.best_by = "loss"
  config.patience = 0  # validations without a better one after which training stops; 0 never does
  config.wandb_project = ""  # of Weights & Biases; '' writes TensorBoard's files alone

  # How the policy is run.
  config.control_hz = 0.0  # 0: the data's frames per second
  config.execute_steps = 0  # of a chunk before the next decision; 0: half of it
  config.denoising_steps = 10
  config.start = "new"  # where the flow starts: 'zero', 'draw:SEED' or, as in openpi, a new draw for every decision
  # Of the keys that are calibrated at the end: attention values, which cost no extra pass, or 'hidden', the last layer;
  # '' leaves it to a memory's first episodes, or to train.calibrate.
  config.key_source = "values"
  return config


def adapters(config: ConfigDict) -> ConfigDict:
  """Returns the configuration with adapters that train alone: no average, as in openpi, and a frozen image tower."""
  config.lora = True
  config.freeze_image_tower = True
  config.ema_decay = 0.0
  return config


def is_debug(variant: str) -> bool:
  """Returns whether what follows the file's name and a colon is 'debug'; anything else but nothing is refused."""
  if variant not in ("", "debug"):
    raise unknown_name("variant of the configuration", variant, ("debug",))
  return variant == "debug"


# LIBERO's entries by the columns of the made-up data.
DEBUG_LIBERO_COLUMNS = {"observation/image": "front", "observation/wrist_image": "wrist", "observation/state": "state",
                        "actions": "actions"}


def debug(config: ConfigDict) -> ConfigDict:
  """Returns the configuration with a tiny model, made-up data and few steps."""
  gemma = {"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16}
  if config.lora:
    gemma |= {"lora_attn": {"rank": 8, "alpha": 8.0}, "lora_ffn": {"rank": 8, "alpha": 8.0}}
  config.model = ConfigDict({
    "action_dim": 16, "action_horizon": 4, "max_token_len": 32, "vocab_size": 128, "image_size": (32, 32),
    "dtype": "float32", "paligemma": dict(gemma), "expert": dict(gemma),
    "siglip": {"width": 32, "depth": 1, "mlp_dim": 64, "num_heads": 2, "patch_size": 8, "zero_head": False}})
  config.lora = False  # the sizes above say it
  config.freeze_image_tower = False  # a fresh tower has to learn
  config.init_checkpoint = "none"
  config.text_tokenizer = "train"
  config.data = ({"path": "debug"},)
  config.validation_fraction = 0.25
  config.augment = False
  config.remat = "none"
  config.steps, config.batch_size, config.warmup_steps, config.learning_rate = 200, 16, 10, 3e-3
  config.decay_steps = 0
  config.cache = "memory"
  config.log_every, config.validate_every, config.validation_batches = 50, 50, 8
  config.ema_decay = 0.9 if config.ema_decay is None else config.ema_decay
  return config
