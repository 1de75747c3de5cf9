"""Mobile-VLA's LSTM head on a frozen backbone: a mobile manipulator with a front and a wrist camera.

`--config=configs/mobile_vla_lstm.py` reads PaliGemma's features, `...py:light` those of a small convolutional encoder
that runs on a CPU, `...py:sim` does so for the simulated one (`--world=mobile`), `...py:small` reads those of
`mobile_small` there, and `...py:debug` trains a smaller head on synthetic data in seconds.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import mobile_small
from pi0rag_jax.errors import unknown_name

VARIANTS = ("", "light", "sim", "small", "debug")


def get_config(variant: str = "") -> ConfigDict:
  """Returns the configuration; every entry can be overridden, as `--config.steps=100`.

  Args:
    variant: what follows the file's name and a colon, one of VARIANTS.
  """
  if variant not in VARIANTS:
    raise unknown_name("variant of the configuration", variant, VARIANTS[1:])
  config: Any = ConfigDict()
  config.name = "mobile_vla_lstm"
  config.kind = "head"
  config.head = ConfigDict()
  config.head.preset = "mobile_vla"  # 2 layers of 512, a window of 8, chunks of 5; or `name`, for a kind of head
  config.head.gripper_dims = (-1,)  # entries of an action that open or close; other fields of the head go here too
  config.read_state = True  # the head reads the robot's state beside the features
  config.stride = 1  # frames between two steps of a history; the policy is asked as often

  # The backbone.
  config.backbone = _light((224, 224)) if variant else _paligemma()
  config.text_tokenizer = "train" if variant else ""  # '' is PaliGemma's; a file; 'train': one of the data's words
  config.state_in_prompt = False  # the state as text in the prompt, as pi0.5 has it; then with quantile_norm
  config.feature_cache = ""  # a folder that runs share; '' is in the workdir
  config.feature_batch_size = 32
  config.feature_dtype = "float32"  # on disk; 'float16' halves it

  # Data.
  # Of any format; with several, each may have a `weight`, and a file `selection` of the episodes that are kept.
  config.data = ({"path": "data/mobile_vla"},)
  config.fields = ConfigDict()
  config.fields.state = ""  # the stored field; '' is the format's default
  config.fields.actions = ""
  config.fields.cameras = ConfigDict({"base_0_rgb": "front", "left_wrist_0_rgb": "wrist"})  # stored names
  config.robot = "plain"  # whose dictionaries the policy takes, see pi0rag_jax/robots; 'panda' is the simulated one
  config.skip_bad = False  # leaves out episodes whose numbers cannot be read
  config.asset_id = "mobile_vla"  # assets/<asset_id>/norm_stats.json
  config.quantile_norm = False  # by quantiles instead of z-scores
  config.gripper_closed, config.gripper_open = 0.0, 1.0  # the actions that mean so
  config.validation_fraction = 0.1  # of the episodes
  config.split_seed = 1

  # Optimization.
  config.parallel = "pmap"  # a copy per device; 'fsdp' shards the state over the devices
  config.seed = 0
  config.steps = 20_000
  config.batch_size = 64  # windows
  config.microbatches = 1  # parts of a batch whose gradients are accumulated
  config.schedule = "cosine"  # or 'rsqrt', 'constant'
  config.learning_rate = 3e-4
  config.warmup_steps = 500
  config.decay_steps = 0  # of the cosine, warm-up included; 0: all steps
  config.final_learning_rate_fraction = 0.01
  config.rsqrt_timescale = 10_000
  config.weight_decay = 1e-4
  config.clip_norm = 1.0
  config.ema_decay = 0.0  # of the weights that are validated and exported; 0 keeps no average

  # Logging, validation, checkpoints.
  config.log_every = 100
  config.validate_every = 1_000  # a checkpoint follows each validation; the last and the best are kept
  config.validation_batches = 32
  config.best_by = "loss"
  config.patience = 5  # validations without a better one after which training stops; 0 never does
  config.wandb_project = ""  # of Weights & Biases; '' writes TensorBoard's files alone
  if variant in ("sim", "small"):
    _simulate(config)
  if variant == "small":
    small: Any = mobile_small.get_config("things")
    of_small(config, "pi0rag_jax/assets/mobile_small", small.model)
    config.data = small.data
  if variant == "debug":
    _shrink(config)
  return config.lock()


def _paligemma() -> ConfigDict:
  """Returns the vision-language model inside an openpi checkpoint."""
  backbone: Any = ConfigDict()
  backbone.name = "paligemma"
  backbone.openpi = "pi05_aloha"  # a configuration of openpi, for the sizes
  backbone.model = ConfigDict()  # other sizes than the configuration's
  backbone.checkpoint = ""  # a folder or a gs:// address; '' is what openpi released for the configuration
  backbone.layer = "hidden"  # 'input': before the language model's layers
  backbone.pool = "mean"
  return backbone


def _light(image_size: tuple[int, int]) -> ConfigDict:
  """Returns the light encoder; without a checkpoint its weights are random, which suits trying out a pipeline."""
  backbone: Any = ConfigDict()
  backbone.name = "light"
  backbone.checkpoint = ""  # torchvision's mobilenet_v3_small as .safetensors, or parameters of one's own
  backbone.image_size = image_size  # px
  backbone.pool = "camera"  # the cameras' features one after the other; 'mean' is over them
  backbone.vocab_size = 256  # at most so many words of prompts; 0 reads none
  backbone.max_token_len = 16
  return backbone


def _simulate(config) -> None:
  """Reads what `python -m pi0rag_jax.worlds.collect --world=mobile --plan=1000 --out=data/mobile` recorded."""
  config.backbone.image_size, config.backbone.vocab_size, config.feature_batch_size = (64, 64), 128, 64
  config.data = ({"path": "data/mobile"},)
  config.robot = "mobile"
  config.fields.cameras = ConfigDict({name: f"observation.images.{name}" for name in config.fields.cameras})
  config.stride = 2  # 0.2 s
  config.validation_fraction = 0.05
  config.update({"steps": 4_000, "learning_rate": 1e-3, "warmup_steps": 100, "validate_every": 500})
  config.update({"validation_batches": 16, "patience": 0, "ema_decay": 0.99})


def of_small(config, policy: str, model) -> None:
  """Reads the vision-language model of a small pi0, a vector for every camera.

  Args:
    policy: the pi0's directory.
    model: its sizes.
  """
  config.backbone = ConfigDict({"name": "paligemma", "openpi": "pi0_aloha_sim", "model": model,
                                "checkpoint": f"{policy}/params", "layer": "hidden", "pool": "camera"})
  config.text_tokenizer = f"{policy}/tokenizer.model"


def _shrink(config) -> None:
  """Makes a run of seconds on a CPU."""
  config.backbone = _light((64, 64))
  config.head.update({"hidden": 128, "layers": 1})
  config.data = ({"path": "debug"},)  # made in the workdir, see train/debug_data.py
  config.asset_id = "debug"
  config.validation_fraction = 0.25
  config.update({"steps": 400, "batch_size": 32, "learning_rate": 2e-3, "warmup_steps": 20, "patience": 0})
  config.update({"log_every": 50, "validate_every": 100, "validation_batches": 3})
