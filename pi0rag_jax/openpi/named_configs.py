"""openpi's 31 named configurations, at the commit in third_party/openpi/README.md.

The five of RoboArena, which fail there when their data are set up, work here.
"""

from pi0rag_jax import errors
from pi0rag_jax.models.pi0_config import OPENPI_CAMERAS
from pi0rag_jax.openpi.config import CosineSchedule, DataConfig, ModelConfig, TrainConfig

CHECKPOINTS = "gs://openpi-assets/checkpoints"
FSQ_TOKENIZER = "gs://openpi-assets/tokenizers/droid_fsq_tokenizer"
ALOHA_RESET = {"reset_pose": [0, -1.5, 1.5, 0, 0, 0]}
# Six joints and the gripper of each of two arms: joints relative to the state, grippers absolute.
ALOHA_DELTA = (*[True] * 6, False) * 2
LIBERO_DELTA = (*[True] * 6, False)
DROID_DELTA = (*[True] * 7, False)

PI0, PI05, PI0_FAST = ModelConfig(), ModelConfig(family="pi05"), ModelConfig(family="pi0_fast")
FLAT_SCHEDULE = CosineSchedule(peak_lr=5e-5, decay_steps=1_000_000, decay_lr=5e-5)


def get_config(name: str) -> TrainConfig:
  """Returns a configuration by its name. Errors: Pi0RagError with the nearest and all the names."""
  if name not in CONFIGS:
    raise errors.unknown_name("configuration", name, CONFIGS)
  return CONFIGS[name]


def _released(name: str) -> str:
  return f"{CHECKPOINTS}/{name}"


def _base(family: str) -> str:
  """Returns the parameters that fine-tuning of a family starts from."""
  return f"{CHECKPOINTS}/{family}_base/params"


def _aloha(*, cameras=None, **changes) -> DataConfig:
  """Returns the data of two ViperX arms in LeRobot's layout.

  Args:
    cameras: the data set's columns by ALOHA's names of cameras; None: the one of the simulation.
  """
  repack = {"images": cameras or {"cam_high": "observation.images.top"},
            "state": "observation.state", "actions": "action"}
  return DataConfig(**{"robot": "aloha", "repack": repack, "delta_mask": ALOHA_DELTA,
                       "action_sequence_keys": ("action",), **changes})


def _libero(*, delta: bool) -> DataConfig:
  """Returns the data of LIBERO. `delta`: once more relative to the state, as the older checkpoints were trained."""
  repack = {"observation/image": "image", "observation/wrist_image": "wrist_image", "observation/state": "state",
            "actions": "actions", "prompt": "prompt"}
  return DataConfig(robot="libero", repo_id="physical-intelligence/libero", repack=repack, prompt_from_task=True,
                    delta_mask=LIBERO_DELTA if delta else None)


def _droid(**changes) -> DataConfig:
  """Returns the data of DROID for inference: statistics come with the checkpoint."""
  return DataConfig(**{"robot": "droid", "asset_id": "droid", "prompt_from_task": True, **changes})


def _droid_rlds(**changes) -> DataConfig:
  """Returns the data of DROID in RLDS, joint positions."""
  repack = {"observation/exterior_image_1_left": "observation/image",
            "observation/wrist_image_left": "observation/wrist_image",
            "observation/joint_position": "observation/joint_position",
            "observation/gripper_position": "observation/gripper_position",
            "actions": "actions", "prompt": "prompt"}
  return DataConfig(**{"robot": "droid", "repack": repack, "delta_mask": DROID_DELTA,
                       "action_space": "joint_position", **changes})


def _fast(**changes) -> ModelConfig:
  """Returns a pi0-FAST model, whose action dim is the robot's."""
  return ModelConfig(**{"family": "pi0_fast", **changes})


def _served() -> list[TrainConfig]:
  """Returns the configurations that only serve, on ALOHA and DROID."""
  aloha = lambda name, model, checkpoint, **data: TrainConfig(  # noqa: E731
    name=name, model=model, data=_aloha(asset_id="trossen", **data), checkpoint=_released(checkpoint),
    policy_metadata=ALOHA_RESET)
  droid = lambda name, model: TrainConfig(  # noqa: E731
    name=name, model=model, data=_droid(), checkpoint=_released(name))
  return [
    aloha("pi0_aloha", PI0, "pi0_base"),
    aloha("pi05_aloha", PI05, "pi05_base"),
    aloha("pi0_aloha_towel", PI0, "pi0_aloha_towel", default_prompt="fold the towel"),
    aloha("pi0_aloha_tupperware", PI0, "pi0_aloha_tupperware",
          default_prompt="open the tupperware and put the food on the plate"),
    droid("pi0_droid", ModelConfig(action_horizon=10)),
    droid("pi0_fast_droid", _fast(action_dim=8, action_horizon=10)),
    droid("pi05_droid", ModelConfig(family="pi05", action_horizon=15)),
  ]


def _finetuned_on_libero() -> list[TrainConfig]:
  """Returns the configurations of LIBERO: full fine-tuning, and with adapters."""
  # pi0-FAST gets the cameras of LIBERO under the names of pi0's.
  fast = {"action_dim": 7, "action_horizon": 10, "max_token_len": 180, "image_keys": OPENPI_CAMERAS}
  lora = "gemma_2b_lora"
  return [
    TrainConfig(name="pi0_libero", model=PI0, data=_libero(delta=True), weights=_base("pi0")),
    TrainConfig(name="pi0_libero_low_mem_finetune", data=_libero(delta=True), weights=_base("pi0"), ema_decay=None,
                model=ModelConfig(paligemma_variant=lora, action_expert_variant="gemma_300m_lora")),
    TrainConfig(name="pi0_fast_libero", model=_fast(**fast), data=_libero(delta=True), weights=_base("pi0_fast")),
    TrainConfig(name="pi0_fast_libero_low_mem_finetune", model=_fast(**fast, paligemma_variant=lora),
                data=_libero(delta=True), weights=_base("pi0_fast"), ema_decay=None),
    TrainConfig(name="pi05_libero", data=_libero(delta=False), weights=_base("pi05"),
                checkpoint=_released("pi05_libero"), ema_decay=0.999, batch_size=256,
                model=ModelConfig(family="pi05", action_horizon=10, discrete_state_input=False),
                lr_schedule=CosineSchedule(warmup_steps=10_000, peak_lr=5e-5, decay_steps=1_000_000, decay_lr=5e-5)),
  ]


def _finetuned_on_aloha() -> list[TrainConfig]:
  """Returns the configurations of pens on ALOHA and of cubes in its simulation."""
  cameras = {name: f"observation.images.{name}" for name in ("cam_high", "cam_left_wrist", "cam_right_wrist")}
  pens = _aloha(cameras=cameras, repo_id="physical-intelligence/aloha_pen_uncap_diverse",
                default_prompt="uncap the pen", asset_id="trossen")
  return [
    TrainConfig(name="pi0_aloha_pen_uncap", model=PI0, data=pens, weights=_base("pi0"),
                checkpoint=_released("pi0_aloha_pen_uncap"), num_train_steps=20_000),
    TrainConfig(name="pi05_aloha_pen_uncap", model=PI05, data=pens, weights=_base("pi05"),
                batch_size=64, num_train_steps=20_000),
    TrainConfig(name="pi0_aloha_sim", model=PI0, weights=_base("pi0"), checkpoint=_released("pi0_aloha_sim"),
                num_train_steps=20_000,
                data=_aloha(repo_id="lerobot/aloha_sim_transfer_cube_human", default_prompt="Transfer cube",
                            delta_mask=None)),
  ]


def _finetuned_on_droid() -> list[TrainConfig]:
  """Returns the configurations of DROID: all of it, and one's own data in its form."""
  full = {"lr_schedule": FLAT_SCHEDULE, "batch_size": 256, "num_train_steps": 100_000}
  own = {key: key.removeprefix("observation/") for key in (
    "observation/exterior_image_1_left", "observation/exterior_image_2_left", "observation/wrist_image_left",
    "observation/joint_position", "observation/gripper_position", "actions", "prompt")}
  return [
    TrainConfig(name="pi0_fast_full_droid_finetune", data=_droid_rlds(repo_id="droid"), weights=_base("pi0_fast"),
                model=_fast(action_dim=8, action_horizon=16, max_token_len=180), **full),
    TrainConfig(name="pi05_full_droid_finetune", weights=_base("pi05"), **full,
                model=ModelConfig(family="pi05", action_horizon=16),
                data=_droid_rlds(repo_id="droid", asset_id="droid")),
    TrainConfig(name="pi05_droid_finetune", model=ModelConfig(family="pi05", action_horizon=16),
                weights=f"{_released('pi05_droid')}/params", num_train_steps=20_000,
                data=_droid(repo_id="your_hf_username/my_droid_dataset", repack=own)),
  ]


def _debug() -> list[TrainConfig]:
  """Returns the configurations of tiny language models, on made-up data."""
  pi0, pi05 = (ModelConfig(family=family, paligemma_variant="dummy", action_expert_variant="dummy")
               for family in ("pi0", "pi05"))
  shared = {"data": DataConfig(robot="fake", repo_id="fake"), "batch_size": 2, "num_train_steps": 10}
  return [
    TrainConfig(name="debug", model=pi0, **shared),
    TrainConfig(name="debug_restore", model=pi0, weights="./checkpoints/debug/debug/9/params",
                **shared),
    TrainConfig(name="debug_pi05", model=pi05, **shared),
  ]


def _roboarena() -> list[TrainConfig]:
  """Returns the baselines of RoboArena, trained from PaliGemma on DROID; they only serve."""
  size = {"action_dim": 8, "action_horizon": 15}
  models = {
    "paligemma_binning_droid": _fast(**size, max_token_len=400, action_tokenizer="binning"),
    "paligemma_fast_droid": _fast(**size),
    "paligemma_fast_specialist_droid": _fast(**size, action_tokenizer_path="KarlP/fast_droid_specialist"),
    "paligemma_vq_droid": _fast(**size, action_tokenizer="fsq", action_tokenizer_path=FSQ_TOKENIZER),
    "paligemma_diffusion_droid": ModelConfig(action_dim=8, action_horizon=10),
  }
  return [TrainConfig(name=name, model=model, data=_droid(), checkpoint=_released(f"roboarena/{name}"))
          for name, model in models.items()]


def _polaris() -> list[TrainConfig]:
  """Returns the configurations of PolaRiS, on joint positions; the one with bins only serves."""
  models = {
    "pi05_droid_jointpos_polaris": ModelConfig(family="pi05", action_horizon=15),
    "pi0_fast_droid_jointpos_polaris": _fast(action_dim=8, action_horizon=10, max_token_len=180),
    "pi0_droid_jointpos_polaris": ModelConfig(action_horizon=10, max_token_len=100),
    "pi0_droid_jointpos_100k_polaris": ModelConfig(action_horizon=10, max_token_len=100),
  }
  configs = []
  for name, model in models.items():
    checkpoint = _released(f"polaris/{name}")
    data = _droid_rlds(asset_id="droid")
    configs.append(TrainConfig(
      name=name, model=model, data=data, weights=f"{checkpoint}/params", checkpoint=checkpoint, batch_size=128,
      lr_schedule=FLAT_SCHEDULE, num_train_steps=1_000))
  binning = _fast(action_dim=8, action_horizon=15, max_token_len=600, action_tokenizer="binning")
  data = _droid(delta_mask=DROID_DELTA, prompt_from_task=False)
  return [*configs, TrainConfig(name="paligemma_binning_droid_jointpos", model=binning, data=data)]


CONFIGS = {config.name: config for config in (
  *_served(), *_finetuned_on_libero(), *_finetuned_on_aloha()[:2], *_finetuned_on_droid(), *_finetuned_on_aloha()[2:],
  *_debug(), *_roboarena(), *_polaris())}
