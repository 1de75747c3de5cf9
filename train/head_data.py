"""Windows of cached features for training heads: data sets in one row, features of every frame, batches of a step.

The numbers of all frames are in memory; features stay on disk, one cache per data set, and are gathered by batch.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pi0rag_jax.curation.views import EpisodesView
from pi0rag_jax.data import running_stats
from pi0rag_jax.data.dataset import Dataset, Fields
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.data.sampling import Mixture, Rows, Sampler, Source
from pi0rag_jax.data.splits import split_episodes
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy import feature_cache
from pi0rag_jax.policy.feature_cache import SHARD_ROWS, FeatureCache, FeatureRows
from pi0rag_jax.policy.features import FeatureExtractor
from pi0rag_jax.policy.head import HeadUnits
from pi0rag_jax.robots.normalize import NormStats, normalize
from pi0rag_jax.typing import Config
from train import data_entries, metrics, parallel
from train.data_entries import Entry
from train.head_windows import WindowRows, window_rows

TRAIN, VALIDATION = "train", "validation"
# Every shard is an open file; processes may have about a thousand.
MOST_SHARDS = 256
PROGRESS_S = 10.0


@dataclasses.dataclass(frozen=True)
class Part:
  """One data set of the mixture; frames are numbered through, episode by episode."""

  dataset: Dataset
  weight: float | None
  splits: Mapping[str, Sequence[int]]  # TRAIN and VALIDATION -> episodes that can be read
  state_FP: np.ndarray  # float32, in the robot's units; zeros in episodes that cannot be read
  actions_FA: np.ndarray  # float32
  prompts_F: np.ndarray  # of texts
  episode_F: np.ndarray  # int64

  @property
  def first_J(self) -> np.ndarray:
    """The number of every episode's first frame."""
    return np.cumsum(self.dataset.lengths) - self.dataset.lengths

  def observations(self, rows: np.ndarray) -> list[dict[str, Any]]:
    """Returns the raw observations of frames, int64[N] that rise."""
    first_J, found = self.first_J, []
    for episode in np.unique(self.episode_F[rows]).tolist():
      here = rows[self.episode_F[rows] == episode]
      pictures = self.dataset.read_frames(episode, here - first_J[episode])
      found += [
        {"image": {name: frames[i] for name, frames in pictures.items()}, "state": self.state_FP[row],
         "prompt": self.prompts_F[row]}
        for i, row in enumerate(here.tolist())]
    return found


def open_parts(config: Config, workdir: Path) -> list[Part]:
  """Returns the data sets of `config.data`, split by episode."""
  parts = [open_part(config, entry) for entry in data_entries.read_all(config, workdir)]
  for part in parts[1:]:
    sizes = [(p.state_FP.shape[1], p.actions_FA.shape[1]) for p in (parts[0], part)]
    if sizes[0] != sizes[1]:
      raise Pi0RagError(f"'{part.dataset.path}' has (state, action) dims {sizes[1]}, '{parts[0].dataset.path}' has "
                        f"{sizes[0]}: data sets of one training have the same")
  return parts


def open_entry(config: Config, entry: Entry) -> Dataset:
  """Returns the data set of an entry, whose options may have `fields` instead of the shared ones."""
  options = dict(entry.options)
  chosen = {**config.fields.to_dict(), **options.pop("fields", {})}
  known = {field.name for field in dataclasses.fields(Fields)}
  if unknown := sorted(set(chosen) - known):
    raise Pi0RagError(f"fields: unknown {', '.join(unknown)}; allowed: {', '.join(sorted(known))}")
  fields = Fields(**{name: value or None for name, value in chosen.items()})
  return entry.chosen(open_dataset(entry.path, fields=fields, skip_bad=config.skip_bad, **options))


def open_part(config: Config, entry: Entry) -> Part:
  """Returns one data set with its numbers, split by episode."""
  dataset = open_entry(config, entry)
  state_FP = np.zeros((dataset.num_frames, dataset.state_dim), np.float32)
  actions_FA = np.zeros((dataset.num_frames, dataset.action_dim), np.float32)
  prompts_F = np.full(dataset.num_frames, "", object)
  first_J, readable = np.cumsum(dataset.lengths) - dataset.lengths, []
  for episode, data in dataset.iterate():
    here = slice(first_J[episode], first_J[episode] + len(data))
    state_FP[here], prompts_F[here] = data.state, data.prompts
    # Of stored chunks the first step: chunks are cut from single actions here.
    actions_FA[here] = data.actions if data.actions.ndim == 2 else data.actions[:, 0]
    readable.append(episode)
  fractions = (1 - config.validation_fraction, config.validation_fraction, 0.0)
  split = split_episodes(len(readable), fractions=fractions, seed=config.split_seed)
  splits = {name: [readable[i] for i in split[name]] for name in (TRAIN, VALIDATION)}
  episode_F = np.repeat(np.arange(dataset.num_episodes), dataset.lengths)
  return Part(dataset, entry.weight, splits, state_FP, actions_FA, prompts_F, episode_F)


def compute_stats(parts: Sequence[Part], *, openpi_quantiles: bool = False) -> dict[str, NormStats]:
  """Returns the statistics of state and single actions over the training episodes.

  Args:
    parts: of the training.
    openpi_quantiles: see `running_stats.compute_norm_stats`.
  """
  episodes = [(part, part.episode_F == episode) for part in parts for episode in part.splits[TRAIN]]
  of_rows = running_stats.openpi_stats if openpi_quantiles else running_stats.exact_stats
  stats = {"state": of_rows([part.state_FP[here] for part, here in episodes]),
           "actions": of_rows([part.actions_FA[here] for part, here in episodes])}
  running_stats.warn_of_constants(stats)
  return stats


def features(config: Config, part: Part, extractor: FeatureExtractor, root: Path) -> FeatureCache | FeatureRows:
  """Returns the cached features of all frames of a data set, computed where they are missing; the first process does.

  A selection reads those of the whole data set where they are there, so that many selections cost no more than one.

  Raises:
    DamagedEpisode: a picture cannot be read.
  """
  key, rows = extractor.cache_key(part.dataset.fingerprint()), len(part.state_FP)
  if isinstance(part.dataset, EpisodesView) and not feature_cache.is_whole(root, key):
    whole = extractor.cache_key(part.dataset.source.fingerprint())
    if feature_cache.is_whole(root, whole):
      return FeatureRows(feature_cache.load(root, whole), part.dataset.source_frames())
  if parallel.is_first():
    progress = Progress(str(part.dataset.path), rows)

    usable = sorted(episode for split in part.splits.values() for episode in split)

    def encode(rows_B: np.ndarray) -> np.ndarray:
      features_BD = np.zeros((len(rows_B), extractor.backbone.hidden_size), np.float32)
      rows = np.unique(rows_B)  # they rise; the last may be repeated
      readable = rows[np.isin(part.episode_F[rows], usable)]
      if len(readable):
        observations = part.observations(readable)
        observations += observations[-1:] * (len(rows_B) - len(readable))
        found_BD = np.asarray(extractor.encode(observations))
        features_BD[np.searchsorted(rows, readable)] = found_BD[: len(readable)]
      progress.add(len(rows))
      return features_BD

    feature_cache.build(
      root, key, encode, rows, width=extractor.backbone.hidden_size, batch_size=config.feature_batch_size,
      shard_rows=max(SHARD_ROWS, -(-rows // MOST_SHARDS)), dtype=config.feature_dtype)
  parallel.wait_for_all(f"features {key.digest}")
  return feature_cache.load(root, key)


class Progress:
  """Says now and then how many frames have been encoded, and how fast."""

  def __init__(self, name: str, total: int):
    self._name, self._total = name, total
    self._start = self._told = time.monotonic()
    self._done = 0

  def add(self, frames: int) -> None:
    """Counts frames that are done."""
    if not self._done:
      metrics.log.info("computing the features of '%s': %d frames", self._name, self._total)
    self._done += frames
    now = time.monotonic()
    if now - self._told > PROGRESS_S or self._done == self._total:
      rate = self._done / (now - self._start)
      metrics.log.info("features of '%s': %d of %d frames, %.1f frames/s, about %.0f s to go", self._name, self._done,
                       self._total, rate, (self._total - self._done) / rate)
      self._told = now


class Table:
  """All that a batch is gathered from."""

  def __init__(self, parts: Sequence[Part], caches: Sequence[FeatureCache | FeatureRows], extractor: FeatureExtractor,
               units: HeadUnits, *, stride: int):
    """Normalizes states, and makes labels of actions."""
    self._caches, self._units = caches, units
    self._first = [part.first_J for part in parts]
    self._state = [normalize(part.state_FP, extractor.state_stats, quantile=extractor.quantile).astype(np.float32)
                   for part in parts]
    self._labels = [units.labels(part.actions_FA) for part in parts]
    config = units.config
    self._windows: list[WindowRows] = [
      window_rows(part.episode_F, config.window, config.chunk, stride=stride) for part in parts]

  def batch(self, rows: Rows) -> dict[str, np.ndarray]:
    """Returns the windows that end at rows, as `heads.losses` describes a batch."""
    config, size = self._units.config, len(rows)
    batch = {
      "features_BWD": np.zeros((size, config.window, config.input_dim), np.float32),
      "actions_BWTA": np.zeros((size, config.window, config.chunk, config.action_dim), np.float32),
      "mask_BW": np.zeros((size, config.window), bool),
      "action_mask_BWT": np.zeros((size, config.window, config.chunk), bool)}
    for source in np.unique(rows.source).tolist():
      here = np.flatnonzero(rows.source == source)
      numbers = self._first[source][rows.episode[here]] + rows.frame[here]
      windows = self._windows[source]
      history_BW = windows.history_FW[numbers]
      batch["features_BWD"][here, :, : config.feature_dim] = self._caches[source].take(history_BW)
      if config.state_dim:
        batch["features_BWD"][here, :, config.feature_dim :] = self._state[source][history_BW]
      batch["actions_BWTA"][here], batch["action_mask_BWT"][here] = windows.labels(numbers, self._labels[source])
      batch["mask_BW"][here] = windows.history_mask_FW[numbers]
    return batch


def make_sampler(config: Config, parts: Sequence[Part], split: str) -> Sampler:
  """Returns which windows make up the batches of a split."""
  mixture = Mixture([Source(part.dataset, part.weight, part.splits[split]) for part in parts])
  seed = config.seed if split == TRAIN else config.split_seed
  return Sampler(mixture, batch_size=config.batch_size, seed=seed, process_index=jax.process_index(),
                 process_count=jax.process_count())


def sampled_batch(table: Table, sampler: Sampler, step: int) -> dict[str, np.ndarray]:
  """Returns this process's part of the batch of a step, with `index`: a pure function of the seed and the step."""
  index_B = jax.process_index() * sampler.local_size + np.arange(sampler.local_size)
  return table.batch(sampler.rows(step)) | {"index": index_B.astype(np.int32)}
