"""What a training's configuration must be before any work: its fields are those of its kind, its counts positive."""

from pathlib import PurePosixPath

from pi0rag_jax import schema
from pi0rag_jax.cli import unknown_entry
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy.spec import check_start
from pi0rag_jax.typing import Config

# The file that explains every field, by the kind of training.
EXPLAINED = {"head": "mobile_vla_lstm", "policy": "openpi_finetune", "openpi": "openpi_finetune"}
# Fields that configurations of before them lack.
OPTIONAL = ("wandb_project",)
# The least and the most of numbers; whole ones, where these are.
RANGES = {
  **dict.fromkeys(("steps", "log_every", "validate_every", "validation_batches", "rsqrt_timescale"), (1, 10**12)),
  **dict.fromkeys(("batch_size", "microbatches", "draws", "feature_batch_size", "stride"), (1, 10**6)),
  **dict.fromkeys(("denoising_steps", "threads", "prefetch"), (1, 1000)),
  **dict.fromkeys(("warmup_steps", "decay_steps", "patience"), (0, 10**12)),
  **dict.fromkeys(("approach_repeats", "execute_steps"), (0, 1000)), "cache_image_size": (0, 10_000),
  **dict.fromkeys(("seed", "split_seed"), (0, 2**32 - 1)),
  "learning_rate": (0.0, 100.0), "final_learning_rate_fraction": (0.0, 1.0), "weight_decay": (0.0, 100.0),
  "clip_norm": (1e-12, 1e12), "ema_decay": (0.0, 0.9999999), "auxiliary_weight": (0.0, 1e6), "control_hz": (0.0, 1e4),
  "validation_fraction": (0.0, 0.99)}


def check(config: Config) -> None:
  """Raises Pi0RagError for an unknown field, a missing one, a list, or a value that no training can have.

  None stands for what the named configuration says.
  """
  check_fields(config)
  for name in config:
    if isinstance(config[name], list):
      raise Pi0RagError(f"'{name}' is the list {config[name]}: train.launch runs the grid of its values")
  for name, (low, high) in RANGES.items():
    if config.get(name) is not None:
      schema.check_range(config[name], low, high, name)
  if "start" in config:
    check_start(config.start)
  asset_id = config.get("asset_id")
  if asset_id is not None and not (asset_id and isinstance(asset_id, str) and is_below(asset_id)):
    raise Pi0RagError(f"asset_id is {asset_id!r}; allowed: the name of a folder below assets/")


def is_below(path: str) -> bool:
  """Returns whether a path stays below the folder that it is joined to."""
  return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts and "\0" not in path


def check_fields(config: Config) -> None:
  """Raises Pi0RagError for a field that the kind of training does not know, or one that it misses."""
  if "kind" not in config:
    raise Pi0RagError("the configuration has no field 'kind': it is not of a training, as configs/panda_small.py is")
  if config.kind not in EXPLAINED:
    return
  known = known_fields(config.kind)
  for name in config:
    if name not in known:
      raise unknown_entry(name, known)
  if missing := sorted(known - set(config) - set(OPTIONAL)):
    raise Pi0RagError(f"the configuration lacks {', '.join(missing)}; configs/{EXPLAINED[config.kind]}.py explains "
                      "what they are")


def known_fields(kind: str) -> set[str]:
  """Returns the fields of a kind's configurations, which the checked-in ones show."""
  from configs import mobile_vla_lstm, openpi_finetune

  return set(mobile_vla_lstm.get_config() if kind == "head" else openpi_finetune.base("", ""))
