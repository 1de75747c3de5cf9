"""Scores of demonstrations by pure functions of their steps and of rollouts; part of the stage score."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pi0rag_jax.curation import scorers
from pi0rag_jax.curation.inputs import EMBEDDINGS
from pi0rag_jax.curation.scorers import SCORERS, Steps, reading
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.policy.feature_cache import fingerprint
from pi0rag_jax.typing import Config
from train.curation.sources import Source, Sources

# The kind of a scorer that is the mean rank of those that `of` names.
COMBINATION = "combination"


def scores(config: Config, sources: Sources, source: Source, others: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns scorer -> float64[J] of the demonstrations of one data set, combinations last.

  Args:
    others: classifier -> float64[J], which combinations may name.
  """
  check(config)
  found: dict[str, np.ndarray] = {}
  for name, member in config.scorers.items():
    if member.kind != COMBINATION:
      rollouts = _rollouts(config, sources, source, member) if SCORERS[member.kind].rollouts else None
      found[name] = scorers.score(member.kind, _demonstrations(config, sources, source, member), rollouts,
                                  **options_of(member))
  for name, member in config.scorers.items():
    if member.kind == COMBINATION:
      found[name] = scorers.combined([{**others, **found}[part] for part in member.options.of])
  return found


def check(config: Config) -> None:
  """Raises Pi0RagError for scorers of a kind that there is not, and for combinations of what is none."""
  single = [*config.classifiers, *(name for name, member in config.scorers.items() if member.kind != COMBINATION)]
  for name, member in config.scorers.items():
    if member.kind == COMBINATION:
      for part in member.options.get("of", ()):
        if part not in single:
          raise unknown_name(f"scorer in the combination '{name}'", part, single)
    elif member.kind not in SCORERS:
      raise unknown_name(f"kind of the scorer '{name}'", member.kind, [*SCORERS, COMBINATION])


def recipe(config: Config, sources: Sources, member: Config) -> str:
  """Returns a fingerprint of all that decides the scores of given demonstrations."""
  extractor = sources.extractor(member.policy) if EMBEDDINGS in member.inputs else None
  parts: dict[str, Any] = {
    "settings": [member.kind, list(member.inputs), member.horizon, options_of(member), list(config.tool_dims)],
    "demonstrations": {path: [source.dataset.fingerprint(), source.every]
                       for path, source in sources.demonstrations.items()},
    "embeddings": [extractor.weights, extractor.preprocessing] if extractor else None}
  if member.kind == COMBINATION or SCORERS[member.kind].rollouts:
    parts["rollouts"] = [config.rollouts.cut, {name: [source.dataset.fingerprint(), sources.success(source)]
                                               for name, source in sources.rollouts.items()}]
  return fingerprint(parts)


def options_of(member: Config) -> dict[str, Any]:
  """Returns the options of a scorer as plain values."""
  return {name: list(value) if isinstance(value, tuple) else value for name, value in member.options.to_dict().items()}


def _demonstrations(config: Config, sources: Sources, source: Source, member: Config) -> Steps:
  unknown_J = np.full(source.dataset.num_episodes, np.nan)
  looks = sources.read(source, member, unknown_J).values
  return reading.read(source.dataset, looks, every=source.every, horizon=member.horizon, tool_dims=config.tool_dims)


def _rollouts(config: Config, sources: Sources, demonstrations: Source, member: Config) -> dict[str, Steps]:
  """Returns the steps of every checkpoint's rollouts, cut as classifiers read them."""
  found = {}
  for name, source in sources.rollouts.items():
    ticks = round(demonstrations.dataset.fps / source.dataset.fps)
    if ticks < 1:
      raise Pi0RagError(f"the scorer '{member.kind}' compares what was done: rollouts of '{name}' have "
                        f"{source.dataset.fps:g} frames per second, the demonstrations {demonstrations.dataset.fps:g}")
    frames, success_J = sources.frames(source), sources.success(source)
    looks = sources.read(source, member, success_J).values
    found[name] = reading.read(
      source.dataset, looks, every=source.every, horizon=member.horizon, ticks=ticks, tool_dims=config.tool_dims,
      success_J=success_J, steps=None if frames is None else -(-frames // source.every))
  return found
