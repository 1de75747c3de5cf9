"""Scores of demonstrations by how far others agree with them; part of the stage score, since nothing is trained."""

import dataclasses

import numpy as np

from pi0rag_jax.curation import agreement
from pi0rag_jax.curation.agreement import AgreementConfig
from pi0rag_jax.curation.inputs import EMBEDDINGS
from pi0rag_jax.policy.feature_cache import fingerprint
from pi0rag_jax.typing import Config
from train.curation.sources import Source, Sources


def scores(sources: Sources, source: Source, member: Config) -> np.ndarray:
  """Returns float64[J] of the demonstrations of one data set."""
  settings = _settings(member)
  unknown_J = np.full(source.dataset.num_episodes, np.nan)
  chunks = agreement.chunks_of(source.dataset, every=source.every, horizon=settings.horizon)
  return agreement.episode_scores(sources.read(source, member, unknown_J), chunks, settings)


def recipe(sources: Sources, member: Config) -> str:
  """Returns a fingerprint of all that decides the scores of given demonstrations."""
  extractor = sources.extractor(member.policy) if EMBEDDINGS in member.inputs else None
  return fingerprint({
    "settings": [list(member.inputs), dataclasses.asdict(_settings(member))],
    "demonstrations": {path: [source.dataset.fingerprint(), source.every]
                       for path, source in sources.demonstrations.items()},
    "embeddings": [extractor.weights, extractor.preprocessing] if extractor else None})


def _settings(member: Config) -> AgreementConfig:
  return AgreementConfig(member.neighbours, member.horizon)
