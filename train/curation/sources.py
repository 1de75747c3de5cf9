"""Rollouts and demonstrations as classifiers read them."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pi0rag_jax.curation import embeddings, inputs, labels
from pi0rag_jax.curation.inputs import EMBEDDINGS, Episodes
from pi0rag_jax.curation.labels import Rule
from pi0rag_jax.curation.views import EpisodesView
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.policy.features import FeatureExtractor
from pi0rag_jax.typing import Config
from train import metrics
from train.curation import data
from train.curation.policies import TRAIN_FOLDER, policies

# Of two rates: as much as their rounding.
SAME_RATE = 0.01


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set of the curation, and which of its frames are looked at."""

  dataset: EpisodesView
  every: int

  @property
  def step_s(self) -> float:
    """Seconds from one frame that is looked at to the next."""
    return self.every / self.dataset.fps


class Sources:
  """Rollouts by checkpoint, those of an update by name, demonstrations by path, and what embeds their frames."""

  def __init__(self, config: Config, workdir: Path):
    self._config, self._workdir = config, workdir
    self.extractor = functools.cache(self._load_extractor)
    self.success = functools.cache(self._read_success)
    training, folder, every = config.training, workdir / TRAIN_FOLDER, config.rollouts.every
    recorded = lambda path: Source(data.recorded(training, path, folder), every)  # noqa: E731
    self.rollouts = {name: recorded(path) for name, path in rollout_paths(config, workdir).items()}
    self.updates = {str(name): recorded(path) for name, path in config.classify.more_rollouts}
    self.demonstrations = {path: Source(dataset, config.demonstrations_every)
                           for path, dataset in data.demonstrations(training, folder).items()}
    check_pace(self.all)
    check_label_file(Rule.of(config.rollouts.success.to_dict()), len(self.experience))

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

  def read(self, source: Source, member: Config, success_J) -> Episodes:
    """Returns what a classifier reads of a data set; its embeddings have to be there."""
    found = self._embeddings(source, member.policy) if EMBEDDINGS in member.inputs else None
    return inputs.read(source.dataset, tuple(member.inputs), success_J=success_J, every=source.every, embeddings=found)

  def labelled(self, source: Source, member: Config) -> Episodes:
    """Returns rollouts as a classifier is trained on them: with their labels, and cut."""
    frames = self.frames(source)
    steps = None if frames is None else -(-frames // source.every)
    return self.read(source, member, self.success(source)).cut(steps)

  def frames(self, source: Source) -> int | None:
    """Returns after how many frames the rollouts of a data set are cut; None: they are not."""
    return inputs.common_frames(source.dataset.lengths, self.success(source), self._config.rollouts.cut)

  def embeddings_of(self, source: Source, policy: str) -> Iterator[np.ndarray]:
    """Yields float32[T, D] of every episode; the embeddings have to be there."""
    found = self._embeddings(source, policy)
    return map(found.episode, range(source.dataset.num_episodes))

  def _read_success(self, source: Source) -> np.ndarray:
    """Returns the labels of rollouts, float64[J]; files of labels count all episodes, damaged ones too."""
    whole_J = labels.success_of(source.dataset.source, rule=self._config.rollouts.success.to_dict())
    return whole_J[source.dataset.episodes]

  def _embeddings(self, source: Source, policy: str) -> embeddings.Embeddings:
    root = self._workdir / EMBEDDINGS
    try:
      return embeddings.load(source.dataset, self.extractor(policy), root, every=source.every)
    except Pi0RagError as error:
      raise Pi0RagError(f"the embeddings of '{source.dataset.path}' are missing: run --stages=embed ({error})"
                        ) from error

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


def check_pace(sources: dict[str, Source]) -> None:
  """Raises Pi0RagError unless a step lasts as long in all data sets; warns of those that do not say so.

  A classifier knows steps: at another pace demonstrations would look like another behaviour.
  """
  if silent := [name for name, source in sources.items() if not source.dataset.says_fps]:
    metrics.log.warning("not known is how many frames per second there are of %s: whether a step lasts as long there "
                        "as elsewhere is not checked", ", ".join(silent))
  seconds = {name: source.step_s for name, source in sources.items() if source.dataset.says_fps}
  if seconds and max(seconds.values()) > (1 + SAME_RATE) * min(seconds.values()):
    raise Pi0RagError("steps differ in how long they last: "
                      f"{', '.join(f'{step_s:.3g} s in {name}' for name, step_s in seconds.items())}. Set "
                      "demonstrations_every or rollouts.every")


def check_label_file(rule: Rule, count: int) -> None:
  """Raises Pi0RagError for one file of labels for several data sets of rollouts."""
  if count > 1 and Path(rule.path).is_absolute():
    raise Pi0RagError(f"rollouts.success.path '{rule.path}' is one file for {count} data sets of rollouts: give it "
                      "from each data set's folder on, such as 'labels.csv'")
