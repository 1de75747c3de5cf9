"""What a named configuration of openpi says: model, robot, data, statistics, weights and schedule. Data only.

`named_configs.py` has openpi's; `configs/my_robot.py` shows one's own.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pi0rag_jax import errors
from pi0rag_jax.models import family, registry
from pi0rag_jax.models.pi0_config import PaliGemmaConfig

ACTION_TOKENIZERS = ("fast", "binning", "fsq")
SIGLIP = "So400m/14"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """A model by the names of its sizes; the lengths default to those of its family."""

  family: str = "pi0"  # one of pi0rag_jax.models.family
  action_dim: int = 32
  action_horizon: int = 0  # steps; 0 for the family's
  max_token_len: int = 0  # 0 for the family's
  dtype: str = "bfloat16"
  image_keys: tuple[str, ...] | None = None  # cameras that the robot's transforms give; None for the family's
  paligemma_variant: str = "gemma_2b"  # of pi0rag_jax.models.registry; '..._lora' adds adapters
  action_expert_variant: str = "gemma_300m"  # unused by pi0-FAST
  discrete_state_input: bool | None = None  # the state as text in the prompt; None: in pi0.5 (pi0-FAST: always)
  action_tokenizer: str = "fast"  # of pi0-FAST, one of ACTION_TOKENIZERS
  action_tokenizer_path: str | None = None  # None for the published FAST; 'fsq' needs one

  def __post_init__(self):
    kind = family.named(self.family)
    if self.action_tokenizer not in ACTION_TOKENIZERS:
      raise errors.unknown_name("action tokenizer", self.action_tokenizer, ACTION_TOKENIZERS)
    object.__setattr__(self, "action_horizon", self.action_horizon or kind.horizon)
    object.__setattr__(self, "max_token_len", self.max_token_len or kind.prompt_tokens)
    if self.discrete_state_input is None:
      object.__setattr__(self, "discrete_state_input", kind.state_in_prompt)

  @property
  def use_quantile_norm(self) -> bool:
    """Whether states and actions are normalized by quantiles instead of z-scores."""
    return family.named(self.family).quantiles

  def build(self) -> PaliGemmaConfig:
    """Returns the configuration that the networks take, with all its sizes."""
    kind = family.named(self.family)
    sizes = {
      "action_dim": self.action_dim, "action_horizon": self.action_horizon, "max_token_len": self.max_token_len,
      "dtype": self.dtype, "paligemma": registry.gemma(self.paligemma_variant), "siglip": registry.siglip(SIGLIP),
    }
    if self.image_keys is not None:
      sizes["image_keys"] = self.image_keys
    if not kind.writes_tokens:
      sizes["expert"] = registry.gemma(self.action_expert_variant)
    return kind.sizes(**sizes, **kind.fixed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """A robot, where its data and statistics are, and what turns its dictionaries into the model's."""

  # A name of pi0rag_jax.robots.registry.ROBOTS, or your own function: (DataConfig, family) -> Robot or TransformGroup.
  robot: str | Callable[["DataConfig", str], Any]
  repo_id: str | None = None  # LeRobot data set
  asset_id: str | None = None  # folder of the statistics within; None: repo_id
  repack: Mapping[str, Any] | None = None  # keys of the data set by keys of the robot, see transforms.Repack
  default_prompt: str | None = None  # where an observation has none
  delta_mask: tuple[bool, ...] | None = None  # actions that are predicted relative to the state
  adapt_to_pi: bool = True  # ALOHA: data in the standard units of ALOHA, unlike those of the base models
  action_sequence_keys: tuple[str, ...] = ("actions",)  # columns that chunks are cut from
  prompt_from_task: bool = False  # the data set's text is the prompt; else only where `repack` names it
  action_space: str | None = None  # of RLDS data: 'joint_position' or 'joint_velocity'

  @property
  def stats_id(self) -> str | None:
    """The folder of the statistics within `assets/`."""
    return self.asset_id or self.repo_id


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineSchedule:
  """Learning rate: linear warmup, then a cosine down to `decay_lr` at step `decay_steps`."""

  warmup_steps: int = 1_000
  peak_lr: float = 2.5e-5
  decay_steps: int = 30_000
  decay_lr: float = 2.5e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """Everything that a policy is trained and served with. Adapters, where the model has any, freeze the rest of it.

  What it says of training is what `train.launch` does unless its own configuration says otherwise.
  """

  name: str
  model: ModelConfig
  data: DataConfig
  weights: str | None = None  # the `params` that training starts from; None is a fresh start
  checkpoint: str | None = None  # released checkpoint that is served by default
  lr_schedule: CosineSchedule = CosineSchedule()
  ema_decay: float | None = 0.99
  batch_size: int = 32
  num_train_steps: int = 30_000
  policy_metadata: Mapping[str, Any] | None = None  # told to clients of a server
