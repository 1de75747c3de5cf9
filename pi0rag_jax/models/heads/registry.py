"""The heads by name, and their configurations as JSON."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.models.heads.base import HeadConfig
from pi0rag_jax.models.heads.discrete import DiscreteConfig, DiscreteHead
from pi0rag_jax.models.heads.lstm import LstmConfig, LstmHead
from pi0rag_jax.models.heads.mlp import MlpConfig, MlpHead
from pi0rag_jax.models.heads.transformer import TransformerConfig, TransformerHead

HEADS: dict[str, tuple[type[HeadConfig], type[nn.Module]]] = {
  "mlp": (MlpConfig, MlpHead),
  "lstm": (LstmConfig, LstmHead),
  "transformer": (TransformerConfig, TransformerHead),
  "discrete": (DiscreteConfig, DiscreteHead),
}


def register_head(name: str, config: type[HeadConfig], network: type[nn.Module]) -> None:
  """Adds a head of one's own; `base` says what its module must have."""
  if name in HEADS:
    raise Pi0RagError(f"there is a head '{name}' already; taken: {', '.join(sorted(HEADS))}")
  HEADS[name] = (config, network)


def head_config(name: str, **fields: Any) -> HeadConfig:
  """Returns the configuration of the head `name`; lists become tuples. An error names an unknown or missing field."""
  if name not in HEADS:
    raise unknown_name("head", name, HEADS)
  kind = HEADS[name][0]
  known = {f.name: f for f in dataclasses.fields(kind)}
  for field in fields:
    if field not in known:
      raise unknown_name(f"field of the head '{name}'", field, known)
  missing = [f.name for f in known.values() if f.default is dataclasses.MISSING and f.name not in fields]
  if missing:
    raise Pi0RagError(f"head '{name}': missing field(s) {', '.join(missing)}")
  values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
  return kind(**values)


def make(config: HeadConfig) -> nn.Module:
  """Returns the module of a configuration."""
  return HEADS[name_of(config)][1](config)


def name_of(config: HeadConfig) -> str:
  """Returns the name of the head that a configuration is of."""
  for name, (kind, _) in HEADS.items():
    if type(config) is kind:
      return name
  raise Pi0RagError(f"no head has a {type(config).__name__}; heads: {', '.join(sorted(HEADS))}")


def to_dict(config: HeadConfig) -> dict:
  """Returns the configuration as plain JSON values, its head's name under `head`; `from_dict` is the inverse."""
  fields = dataclasses.asdict(config)
  return {"head": name_of(config)} | {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


def from_dict(data: Mapping) -> HeadConfig:
  """Returns the configuration of a JSON object."""
  fields = dict(data)
  if "head" not in fields:
    raise Pi0RagError(f"a head's configuration names its kind under 'head'; seen: {', '.join(sorted(fields))}")
  return head_config(fields.pop("head"), **fields)
