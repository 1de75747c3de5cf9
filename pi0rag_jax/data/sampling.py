"""Which frames make up batch `step`: a pure function of (seed, step), for weighted mixtures and several hosts."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from pi0rag_jax.data.dataset import Dataset
from pi0rag_jax.data.permutation import shuffled
from pi0rag_jax.errors import Pi0RagError

# Within so many samples every source gets exactly its share, rounded to whole samples.
BLOCK = 16_384


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set in a mixture."""

  dataset: Dataset
  weight: float | None = None  # share of the samples, relative to the others'; None: its number of frames
  episodes: Sequence[int] | None = None  # None: all
  # What makes this data set's samples like the others': a function of one sample, as openpi's transforms are.
  transform: Callable[[dict], dict] | None = None
  frames: Sequence[int] | np.ndarray | None = None  # shown, by number among those of `episodes`; None: all
  again: Sequence[int] | np.ndarray = ()  # frames that are shown once more, by their number among those of `episodes`


@dataclasses.dataclass(frozen=True)
class Rows:
  """Where the samples of a batch lie."""

  source: np.ndarray  # int64[B], into the mixture
  episode: np.ndarray  # int64[B], within the source's data set
  frame: np.ndarray  # int64[B], within the episode

  def __len__(self) -> int:
    return len(self.source)


class Mixture:
  """Data sets that are sampled from by weight; each is gone through wholly, shuffled, before it starts again."""

  def __init__(self, sources: Sequence[Source] | Dataset):
    """A data set alone is a mixture of one."""
    self.sources = (Source(sources),) if isinstance(sources, Dataset) else tuple(sources)
    if not self.sources:
      raise Pi0RagError("a mixture needs one data set or more")
    self._episodes, self._ends = [], []
    for source in self.sources:
      every = np.arange(source.dataset.num_episodes) if source.episodes is None else np.asarray(source.episodes)
      if not every.size or every.min() < 0 or every.max() >= source.dataset.num_episodes:
        raise Pi0RagError(f"'{source.dataset.path}' has episodes 0 to {source.dataset.num_episodes - 1}, "
                          f"the mixture takes {list(source.episodes or ())[:8]}")
      self._episodes.append(every)
      self._ends.append(np.cumsum(source.dataset.lengths[every]))
    self._numbers = [_shown(source, int(ends[-1])) for ends, source in zip(self._ends, self.sources)]
    self.sizes = [int(ends[-1]) if numbers is None else len(numbers)
                  for ends, numbers in zip(self._ends, self._numbers)]
    weights = np.asarray([size if s.weight is None else s.weight for s, size in zip(self.sources, self.sizes)], float)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
      raise Pi0RagError(f"weights of a mixture are finite, 0 or more and not all 0; got {weights.tolist()}")
    if any(s.weight is None for s in self.sources) and any(s.weight is not None for s in self.sources):
      raise Pi0RagError("give every source of a mixture a weight, or none")
    self.weights = weights / weights.sum()

  @property
  def num_frames(self) -> int:
    return sum(self.sizes)

  def episodes(self, source: int) -> np.ndarray:
    """Returns int64[N], the episodes that a source gives."""
    return self._episodes[source]

  def rows(self, source: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (episode, frame), int64[N] each, of the source's frames with these numbers."""
    ends, shown = self._ends[source], self._numbers[source]
    numbers = numbers if shown is None else shown[numbers]
    place = np.searchsorted(ends, numbers, side="right")
    episodes = self._episodes[source][place]
    return episodes, numbers - (ends[place] - self.sources[source].dataset.lengths[episodes])


def _shown(source: Source, count: int) -> np.ndarray | None:
  """Returns the numbers of the frames that a source shows, None for each of its `count` frames once."""
  if source.frames is None and not len(source.again):
    return None
  frames = np.arange(count) if source.frames is None else np.asarray(source.frames, int)
  if not frames.size:
    raise Pi0RagError(f"'{source.dataset.path}' shows none of its {count} frames")
  return np.concatenate([frames, np.asarray(source.again, int)])


class Sampler:
  """Rows of every step; hosts draw disjoint parts of the same global batch."""

  def __init__(
    self, mixture: Mixture, *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
  ):
    """
    Args:
      mixture: what is sampled.
      batch_size: of all hosts together.
      seed: of all shuffles.
      process_index, process_count: this host's, as `jax.process_index()` and `jax.process_count()`.
    """
    if batch_size < 1 or batch_size % process_count:
      raise Pi0RagError(f"a batch of {batch_size} cannot be shared out among {process_count} hosts")
    if not 0 <= process_index < process_count:
      raise Pi0RagError(f"process_index is {process_index}, allowed: 0 to {process_count - 1}")
    self.mixture, self.batch_size, self.seed = mixture, batch_size, seed
    self._first = process_index * (batch_size // process_count)
    self.local_size = batch_size // process_count
    self._quotas = _quotas(mixture.weights)

  def rows(self, step: int) -> Rows:
    """Returns this host's rows of the batch `step`."""
    numbers = step * self.batch_size + self._first + np.arange(self.local_size)
    return self._rows(numbers)

  def replacements(self, step: int, slots: np.ndarray, attempt: int) -> Rows:
    """Returns other rows for slots whose frames cannot be read: random ones of the same sources.

    Args:
      step: the batch.
      slots: int[N], places in this host's batch.
      attempt: 0, 1, ...: how often this was asked for.
    """
    sources = self.rows(step).source[slots]
    picked = []
    for slot, source in zip(slots.tolist(), sources.tolist()):
      rng = np.random.default_rng([self.seed, step, self._first + slot, attempt])
      picked.append(int(rng.integers(self.mixture.sizes[source])))
    return self._located(sources, np.asarray(picked, np.int64))

  def _rows(self, numbers: np.ndarray) -> Rows:
    """Returns the rows of samples by their number in the endless sequence of all samples."""
    blocks, places = np.divmod(numbers, BLOCK)
    sources, ranks = np.empty_like(numbers), np.empty_like(numbers)
    for block in np.unique(blocks).tolist():
      here = blocks == block
      order, rank = _block_order(self._quotas, self.seed, block)
      sources[here] = order[places[here]]
      ranks[here] = rank[places[here]] + block * np.asarray(self._quotas)[sources[here]]
    frames = np.empty_like(numbers)
    for source in np.unique(sources).tolist():
      here = np.flatnonzero(sources == source)
      epochs, within = np.divmod(ranks[here], self.mixture.sizes[source])
      for epoch in np.unique(epochs).tolist():
        picked = epochs == epoch
        key = (self.seed, source, epoch)
        frames[here[picked]] = shuffled(within[picked], self.mixture.sizes[source], key)
    return self._located(sources, frames)

  def _located(self, sources: np.ndarray, frames: np.ndarray) -> Rows:
    episode, frame = np.empty_like(frames), np.empty_like(frames)
    for source in np.unique(sources).tolist():
      here = sources == source
      episode[here], frame[here] = self.mixture.rows(source, frames[here])
    return Rows(sources, episode, frame)


def _quotas(weights: np.ndarray) -> tuple[int, ...]:
  """Returns how many of BLOCK samples every source gets; one at least where its weight is not 0."""
  quotas = np.maximum(np.floor(weights * BLOCK).astype(int), weights > 0)
  left = BLOCK - int(quotas.sum())
  remainder = np.argsort(-(weights * BLOCK - quotas), kind="stable")
  quotas[remainder[: max(left, 0)]] += 1
  quotas[int(np.argmax(quotas))] += BLOCK - int(quotas.sum())
  return tuple(quotas.tolist())


@functools.lru_cache(maxsize=8)
def _block_order(quotas: tuple[int, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns (source, how many of it came before within the block), int64[BLOCK] each, for a block's samples."""
  order = np.repeat(np.arange(len(quotas)), quotas)
  if len(quotas) > 1:
    order = np.random.default_rng([seed, block]).permutation(order)
  ranks = np.empty_like(order)
  for source, quota in enumerate(quotas):
    ranks[order == source] = np.arange(quota)
  return order, ranks
