"""Batches made ahead of time by threads, in the order of the steps, with the time that the consumer waited."""

import collections
import concurrent.futures
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pi0rag_jax.data import samples
from pi0rag_jax.data.arrays import resized
from pi0rag_jax.data.dataset import DamagedEpisode, Dataset
from pi0rag_jax.data.sampling import Rows, Sampler
from pi0rag_jax.errors import Pi0RagError

# So often a frame that cannot be read is replaced by another before the whole data set counts as broken.
REPLACEMENTS = 20


class Loader:
  """Iterates over (step, batch) from `start_step` on, without end.

  A batch is `Dataset.read_samples`' dictionary, or what the sources' transforms make of each sample, stacked. It
  depends on the sampler and the step alone, so a resumed run continues with the same batches.
  """

  def __init__(
    self, sampler: Sampler, *, horizon: int, cameras: Sequence[str] | None = None,
    image_size: int | tuple[int, int] | None = None, start_step: int = 0, prefetch: int = 2, threads: int = 1,
  ):
    """
    Args:
      sampler: whose rows are read.
      horizon: steps of an action chunk.
      cameras: our names; None is all of each source.
      image_size: (height, width) or both in one, px; None keeps the sizes.
      start_step: the first.
      prefetch: batches made ahead; memory holds so many.
      threads: that make them.
    """
    self.waited_s = 0.0  # total time that the consumer waited for a batch
    self.last_wait_s = 0.0
    self.skipped = 0  # samples that were replaced because they could not be read
    self._sampler, self._horizon, self._cameras, self._size = sampler, horizon, cameras, image_size
    self._next_step, self._prefetch = start_step, max(1, prefetch)
    self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="loader")
    self._ahead: collections.deque[tuple[int, concurrent.futures.Future]] = collections.deque()

  def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
    return self

  def __next__(self) -> tuple[int, dict[str, Any]]:
    self._fill()
    step, future = self._ahead.popleft()
    start = time.perf_counter()
    batch, skipped = future.result()
    self.last_wait_s = time.perf_counter() - start
    self.waited_s += self.last_wait_s
    self.skipped += skipped
    self._fill()
    return step, batch

  def __enter__(self) -> "Loader":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Stops the threads."""
    self._pool.shutdown(wait=True, cancel_futures=True)

  def _fill(self) -> None:
    while len(self._ahead) < self._prefetch:
      self._ahead.append((self._next_step, self._pool.submit(self.read_batch, self._next_step)))
      self._next_step += 1

  def read_batch(self, step: int) -> tuple[dict[str, Any], int]:
    """Returns (batch, how many of its samples were replaced)."""
    rows, parts, places, skipped = self._sampler.rows(step), [], [], 0
    for source in np.unique(rows.source).tolist():
      here = np.flatnonzero(rows.source == source)
      try:
        part = self._read(source, rows, here)
      except DamagedEpisode:
        part, replaced = self._read_around_damage(step, source, rows, here)
        skipped += replaced
      parts.append(part)
      places.append(here)
    return samples.interleave(parts, places), skipped

  def _read(self, source: int, rows: Rows, slots: np.ndarray) -> dict[str, Any]:
    """Returns the samples of one source at slots of the rows, stacked."""
    chosen = self._sampler.mixture.sources[source]
    batch = chosen.dataset.read_samples(
      rows.episode[slots], rows.frame[slots], horizon=self._horizon, cameras=self._cameras)
    _refuse_gaps(batch, chosen.dataset, rows, slots)
    batch["image"] = {name: resized(frames, self._size) for name, frames in batch["image"].items()}
    if chosen.transform is None:
      return batch
    return samples.stack([chosen.transform(samples.unstack(batch, slot)) for slot in range(len(slots))])

  def _read_around_damage(self, step: int, source: int, rows: Rows, slots: np.ndarray) -> tuple[dict[str, Any], int]:
    """Returns (stacked samples, replaced ones): each slot is read alone, others take the place of damaged ones."""
    dataset = self._sampler.mixture.sources[source].dataset
    parts, skipped = [], 0
    for slot in slots:
      here, attempt, alone = rows, 0, np.asarray([slot])
      while True:
        at = alone if here is rows else np.zeros(1, np.int64)
        try:
          parts.append(self._read(source, here, at))
          break
        except DamagedEpisode as error:
          dataset.count_damage(dataset.episode_name(int(here.episode[at[0]])), error)
          if attempt == REPLACEMENTS:
            raise Pi0RagError(f"'{dataset.path}': {attempt} frames in a row cannot be read: {error}") from error
          here = self._sampler.replacements(step, alone, attempt)
          attempt += 1
      skipped += attempt > 0
    return samples.interleave(parts, [np.asarray([i]) for i in range(len(parts))]), skipped


def _refuse_gaps(batch: Mapping[str, Any], dataset: Dataset, rows: Rows, slots: np.ndarray) -> None:
  """Raises DamagedEpisode where a number is missing: a gradient that is not finite would spoil every parameter."""
  for name in ("state", "actions"):
    finite = np.isfinite(batch[name])
    if not finite.all():
      slot, dim = (int(np.argwhere(~finite)[0][axis]) for axis in (0, -1))
      episode, frame = int(rows.episode[slots[slot]]), int(rows.frame[slots[slot]])
      raise DamagedEpisode(f"{name}[{dim}] of {dataset.episode_name(episode)} is not finite at frame {frame}"
                           f"{' or after it' if name == 'actions' else ''}")
