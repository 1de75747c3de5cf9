"""The data sets of a curation: rollouts and demonstrations, as classifiers read them."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax.curation import embeddings, inputs, labels
from pi0rag_jax.curation.inputs import EMBEDDINGS, Episodes
from pi0rag_jax.data.dataset import Dataset, Fields
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.policy.features import FeatureExtractor
from pi0rag_jax.typing import Config
from train.curation_policies import policies


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set of the curation, and which of its frames are looked at."""

  dataset: Dataset
  every: int


class Sources:
  """Rollouts by checkpoint, those of an update by name, demonstrations by path, and what embeds their frames."""

  def __init__(self, config: Config, workdir: Path):
    self._config, self._workdir = config, workdir
    self.extractor = functools.cache(self._load_extractor)
    self.rollouts = {name: Source(open_dataset(path), config.rollouts.every)
                     for name, path in rollout_paths(config, workdir).items()}
    self.updates = {str(name): Source(open_dataset(path), config.rollouts.every)
                    for name, path in config.classify.more_rollouts}
    self.demonstrations = {entry["path"]: Source(_open(entry), config.demonstrations_every)
                           for entry in demonstration_entries(config.training)}

  @property
  def experience(self) -> dict[str, Source]:
    """What classifiers are trained on, by a name of its own."""
    return {**{f"rollouts {name}": source for name, source in self.rollouts.items()},
            **{f"update {name}": source for name, source in self.updates.items()}}

  @property
  def all(self) -> dict[str, Source]:
    """Every data set by a name of its own."""
    return {**self.experience,
            **{f"demonstrations {name}": source for name, source in self.demonstrations.items()}}

  def embed(self, source: Source, policy: str, **options) -> embeddings.Embeddings:
    """Returns the embeddings of a data set, after computing those that are missing."""
    c = self._config.embed
    return embeddings.build(source.dataset, self.extractor(policy), self._workdir / EMBEDDINGS, every=source.every,
                            batch_size=c.batch_size, dtype=c.dtype, **options)

  def read(self, source: Source, member: Config, success_E) -> Episodes:
    """Returns what a classifier reads of a data set; its embeddings have to be there."""
    found = self._embeddings(source, member.policy) if EMBEDDINGS in member.inputs else None
    return inputs.read(source.dataset, tuple(member.inputs), success_E=success_E, every=source.every, embeddings=found)

  def labelled(self, source: Source, member: Config) -> Episodes:
    """Returns rollouts as a classifier reads them, with their labels."""
    return self.read(source, member, self.success(source))

  def success(self, source: Source) -> np.ndarray:
    """Returns the labels of rollouts, float64[E]."""
    return labels.success_of(source.dataset, rule=self._config.rollouts.success.to_dict())

  def embeddings_of(self, source: Source, policy: str) -> Iterator[np.ndarray]:
    """Yields float32[T, D] of every episode; the embeddings have to be there."""
    found = self._embeddings(source, policy)
    return map(found.episode, range(source.dataset.num_episodes))

  def _embeddings(self, source: Source, policy: str) -> embeddings.Embeddings:
    root = self._workdir / EMBEDDINGS
    return embeddings.load(source.dataset, self.extractor(policy), root, every=source.every)

  def _load_extractor(self, policy: str) -> FeatureExtractor:
    """Returns what embeds as a checkpoint does; '' is the last one."""
    found = policies(self._config, self._workdir)
    name = policy or list(found)[-1]
    if name not in found:
      raise unknown_name("checkpoint that embeds", name, found)
    return embeddings.policy_extractor(found[name], layer=self._config.embed.layer, pool=self._config.embed.pool)


def rollout_paths(config: Config, workdir: Path) -> dict[str, Path]:
  """Returns checkpoint -> data set of its rollouts, in the order of the training."""
  if config.rollouts.given:
    return {str(name): Path(path) for name, path in config.rollouts.given}
  found = {path.name: path for path in sorted((workdir / "rollouts").glob("*")) if any(path.glob("*.h5"))}
  if config.policies:
    found = {name: found[name] for name in policies(config, workdir) if name in found}
  if not found:
    raise Pi0RagError(f"no rollouts in '{workdir / 'rollouts'}': run --stages=rollout, or give recorded ones with "
                      "config.rollouts.given")
  return found


def demonstration_entries(training: Config) -> list[dict[str, Any]]:
  """Returns {path, fields} of every data set that a training reads."""
  if "data_dir" in training:
    if not Path(training.data_dir).is_dir():
      raise Pi0RagError(f"no data directory '{training.data_dir}'; collect it with: {training.make_data}")
    return [{"path": training.data_dir}]
  shared = training.fields.to_dict() if "fields" in training else {}
  return [{"path": entry["path"], "fields": {**shared, **entry.get("fields", {})}}
          for entry in map(dict, training.data)]


def _open(entry: Mapping[str, Any]) -> Dataset:
  chosen = {name: value or None for name, value in entry.get("fields", {}).items()}
  return open_dataset(entry["path"], fields=Fields(**chosen))
