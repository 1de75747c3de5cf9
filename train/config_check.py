"""What a training's configuration must be before any work: its fields are those of its kind, its counts positive."""

from pi0rag_jax.cli import unknown_entry
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.typing import Config

# The file that explains every field, by the kind of training.
EXPLAINED = {"head": "mobile_vla_lstm", "policy": "openpi_finetune", "openpi": "openpi_finetune"}
# Fields that configurations of before them lack.
OPTIONAL = ("wandb_project",)
COUNTS = ("steps", "batch_size", "microbatches", "log_every", "validate_every", "validation_batches")


def check(config: Config) -> None:
  """Raises Pi0RagError for an unknown field, a missing one, a list, or a count below 1."""
  check_fields(config)
  for name in config:
    if isinstance(config[name], list):
      raise Pi0RagError(f"'{name}' is the list {config[name]}: train.launch runs the grid of its values")
  for name in COUNTS:
    if config.get(name) is not None and (not isinstance(config[name], int) or config[name] < 1):
      raise Pi0RagError(f"{name} is {config[name]!r}; allowed: whole numbers from 1")


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
