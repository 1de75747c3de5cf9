"""Statistics of states and actions over whole data sets, in parallel: with exact quantiles, or as openpi counts them.

Source of openpi's numbers: its `shared/normalize.py`; the recorded case `running_stats` holds this file to it. Where a
batch exceeds the range so far, its histogram moves what it holds by up to a bin per growth (openpi PR #1041: a q01 of
2.0 where 0 is right), and pi0.5 normalizes with those quantiles: exact ones are the default here.
"""

import concurrent.futures
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pi0rag_jax.data.dataset import DamagedEpisode
from pi0rag_jax.data.quantiles import Quantiles
from pi0rag_jax.data.samples import action_chunks
from pi0rag_jax.data.sampling import Mixture
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots.normalize import NormStats, hardly_varying

NAMES = ("state", "actions")
LOW_QUANTILE, HIGH_QUANTILE = 0.01, 0.99
BINS = 5000
# The first range is widened by this, so that a constant dimension has bins.
MARGIN = 1e-10

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Summary:
  """What a batch adds to the statistics, apart from its histogram."""

  count: int
  mean_P: np.ndarray
  mean_of_squares_P: np.ndarray
  low_P: np.ndarray
  high_P: np.ndarray

  @classmethod
  def of(cls, rows_XP: np.ndarray) -> "Summary":
    """Returns the summary of float64[X, P].

    Raises:
      Pi0RagError: no rows, or numbers that are not finite.
    """
    if not len(rows_XP) or not np.isfinite(rows_XP).all():
      raise Pi0RagError(f"statistics need finite rows, got shape {rows_XP.shape} with non-finite or no entries")
    return cls(len(rows_XP), rows_XP.mean(0), np.mean(rows_XP**2, axis=0), rows_XP.min(0), rows_XP.max(0))


class RunningStats:
  """Mean, deviation and quantiles of vectors that come in batches; memory does not grow with their number.

  Quantiles are the left borders of histogram bins. Where a batch exceeds the range so far, the histogram is put into
  new bins: a bin's contents go where its left border falls. The margin is dropped then, as in openpi, and with it
  the lowest bin of a dimension whose minimum stays.
  """

  def __init__(self):
    self.count = 0
    self.edges_PX: np.ndarray | None = None  # float64[P, BINS + 1]
    self._mean_P = self._mean_of_squares_P = self._low_P = self._high_P = self._counts_PX = np.zeros(0)

  def update(self, values) -> None:
    """Adds float[..., P]."""
    rows_XP = as_rows(values)
    self.extend_range(summary := Summary.of(rows_XP))
    assert self.edges_PX is not None
    self.add(summary, histogram(rows_XP, self.edges_PX))

  def extend_range(self, summary: Summary) -> bool:
    """Makes the bins cover a batch's range, and returns whether they changed."""
    if self.edges_PX is None:
      self._low_P, self._high_P = summary.low_P, summary.high_P
      self.edges_PX = _borders(self._low_P - MARGIN, self._high_P + MARGIN)
      self._counts_PX = np.zeros((len(summary.low_P), BINS))
      self._mean_P, self._mean_of_squares_P = np.zeros_like(summary.mean_P), np.zeros_like(summary.mean_P)
      return True
    if len(summary.low_P) != len(self.edges_PX):
      raise Pi0RagError(f"vectors have {len(summary.low_P)} dims, those before had {len(self.edges_PX)}")
    if (summary.low_P >= self._low_P).all() and (summary.high_P <= self._high_P).all():
      return False
    self._low_P, self._high_P = np.minimum(self._low_P, summary.low_P), np.maximum(self._high_P, summary.high_P)
    old_PX, self.edges_PX = self.edges_PX, _borders(self._low_P, self._high_P)
    self._counts_PX = _rebinned(self._counts_PX, old_PX, self.edges_PX)
    return True

  def add(self, summary: Summary, counts_PX: np.ndarray) -> None:
    """Adds a batch by its summary and its histogram in the bins of now."""
    self.count += summary.count
    share = summary.count / self.count
    self._mean_P = self._mean_P + (summary.mean_P - self._mean_P) * share
    self._mean_of_squares_P = self._mean_of_squares_P + (summary.mean_of_squares_P - self._mean_of_squares_P) * share
    self._counts_PX = self._counts_PX + counts_PX

  def merge(self, other: "RunningStats") -> None:
    """Adds what another one has seen; its histogram is put into the bins of both, so quantiles move up to a bin."""
    if other.edges_PX is None:
      return
    summary = Summary(other.count, other._mean_P, other._mean_of_squares_P, other._low_P, other._high_P)
    self.extend_range(summary)
    assert self.edges_PX is not None
    lefts_PX = np.maximum(other.edges_PX, self.edges_PX[:, :1])  # the other's margin may lie outside
    self.add(summary, _rebinned(other._counts_PX, lefts_PX, self.edges_PX))

  def result(self) -> NormStats:
    """Returns the statistics, float64[P] each; the deviation is the population's."""
    _refuse_few(self.count)
    variance_P = np.maximum(0, self._mean_of_squares_P - self._mean_P**2)
    return NormStats(self._mean_P, np.sqrt(variance_P), self._quantile(LOW_QUANTILE), self._quantile(HIGH_QUANTILE))

  def _quantile(self, share: float) -> np.ndarray:
    assert self.edges_PX is not None
    places = [np.searchsorted(np.cumsum(counts_X), share * self.count) for counts_X in self._counts_PX]
    return np.asarray([edges_X[place] for edges_X, place in zip(self.edges_PX, places)])


def as_rows(values) -> np.ndarray:
  """Returns float64[X, P] of float[..., P]."""
  values = np.asarray(values)
  return values.reshape(-1, values.shape[-1]).astype(np.float64)


def histogram(rows_XP: np.ndarray, edges_PX: np.ndarray) -> np.ndarray:
  """Returns float64[P, BINS], how many rows fall into each bin."""
  return np.stack([np.histogram(column, bins=edges)[0].astype(float) for column, edges in zip(rows_XP.T, edges_PX)])


def compute_norm_stats(
  data, *, horizon: int, transform: Callable[[dict], dict] | None = None, workers: int = 2,
  progress: Callable[[int, int], None] = lambda done, total: None, openpi_quantiles: bool = False,
) -> dict[str, NormStats]:
  """Returns {`state`, `actions`} over every frame, and every step of every frame's chunk; warns of what hardly varies.

  The result does not depend on `workers`.

  Args:
    data: a Dataset or a Mixture, whose weights do not matter here. Damaged episodes, and those with numbers that are
      not finite, are left out where it skips them.
    horizon: steps of an action chunk; beyond an episode's end its last action is repeated.
    transform: of one sample {`state` [P], `actions` [T, A], `prompt`}, after the source's own; such as delta actions.
    workers: threads.
    progress: is told how many readings of an episode, of how many, are done; each episode is read twice.
    openpi_quantiles: gives, to the last bit, what one of openpi's RunningStats gives that is updated with one episode
      after the other; else quantiles are those of `np.quantile` over all rows as float32.
  Raises:
    DamagedEpisode: an episode cannot be read, or has a number that is not finite.
    Pi0RagError: fewer than two frames.
  """
  readings = _Readings(data, horizon, transform, workers, progress)
  with readings:
    stats = (_openpi_stats if openpi_quantiles else _exact_stats)(readings)
  warn_of_constants(stats)
  return stats


def exact_stats(episodes: Sequence[np.ndarray]) -> NormStats:
  """Returns the statistics of float[..., P] each, with exact quantiles: of rows that are in memory."""
  rows_XP = np.concatenate([as_rows(values) for values in episodes])
  _refuse_few(len(rows_XP))
  low_P, high_P = np.quantile(rows_XP, (LOW_QUANTILE, HIGH_QUANTILE), axis=0)
  return NormStats(rows_XP.mean(0), rows_XP.std(0), low_P, high_P)


def openpi_stats(episodes: Sequence[np.ndarray]) -> NormStats:
  """Returns the statistics of float[..., P] each, as openpi's RunningStats counts them one after the other."""
  stats = RunningStats()
  for values in episodes:
    stats.update(values)
  return stats.result()


def warn_of_constants(stats: Mapping[str, NormStats]) -> None:
  """Logs which dimensions hardly vary."""
  for name, each in stats.items():
    for text in hardly_varying(each):
      _log.warning("%s%s", name, text)


class _Readings:
  """Reads all episodes of a mixture, as often as asked, by threads."""

  def __init__(self, data, horizon: int, transform, workers: int, progress: Callable[[int, int], None]):
    self._mixture = data if isinstance(data, Mixture) else Mixture(data)
    self._horizon, self._transform, self._workers, self._progress = horizon, transform, workers, progress
    mixture = self._mixture
    self.places = [(number, int(e)) for number in range(len(mixture.sources)) for e in mixture.episodes(number)]
    self._read = 0

  def __enter__(self) -> "_Readings":
    self._pool = concurrent.futures.ThreadPoolExecutor(self._workers)
    return self

  def __exit__(self, *_) -> None:
    self._pool.shutdown(cancel_futures=True)

  def once(self, function: Callable[[int, dict[str, np.ndarray]], Any]) -> Iterator[Any]:
    """Yields `function`'s results of (number, rows) for every place, in order.

    The first time, damaged places are dropped where their data set skips them; those that are left must stay readable.
    """
    first, kept = self._read == 0, []
    tasks = list(enumerate(self.places))
    total = self._read + len(tasks) * (2 if first else 1)
    for place, (result, error) in zip(self.places, self._ordered(lambda task: self._one(function, *task), tasks)):
      self._read += 1
      self._progress(self._read, total)
      if error is None:
        kept.append(place)
        yield result
      elif first:
        dataset = self._mixture.sources[place[0]].dataset
        dataset.count_damage(dataset.episode_name(place[1]), error)
      else:
        raise error
    self.places = kept

  def _one(self, function, number: int, place: tuple[int, int]) -> tuple[Any, DamagedEpisode | None]:
    try:
      rows = _episode_rows(self._mixture, place, self._horizon, self._transform)
      self._refuse_gaps(rows, place)
      return function(number, rows), None
    except DamagedEpisode as error:
      return None, error

  def _refuse_gaps(self, rows: Mapping[str, np.ndarray], place: tuple[int, int]) -> None:
    for name, rows_XP in rows.items():
      with np.errstate(over="ignore"):
        finite_XP = np.isfinite(rows_XP.astype(np.float32))
      if not finite_XP.all():
        row, dim = np.argwhere(~finite_XP)[0].tolist()
        dataset, value = self._mixture.sources[place[0]].dataset, rows_XP[row, dim]
        frame = row if name == "state" else row // self._horizon
        raise DamagedEpisode(f"{name}[{dim}] of {dataset.episode_name(place[1])} is {value} at frame {frame}"
                             f"{'' if name == 'state' else ' or in the chunk that starts there'}, in the data set "
                             f"'{dataset.path}': statistics need finite numbers")

  def _ordered(self, function, tasks: list) -> Iterator:
    """Yields the results in order, with few tasks begun before they are wanted."""
    ahead = 4 * self._workers
    for start in range(0, len(tasks), ahead):
      yield from self._pool.map(function, tasks[start : start + ahead])


def _exact_stats(readings: _Readings) -> dict[str, NormStats]:
  """Returns the statistics with exact quantiles; means and deviations are merged episode by episode (Chan et al.)."""
  counters: dict[str, Quantiles] = {}
  lock = threading.Lock()

  def first(number: int, rows: Mapping[str, np.ndarray]) -> dict[str, tuple[int, np.ndarray, np.ndarray]]:
    with lock:
      for name, rows_XP in rows.items():
        counters.setdefault(name, Quantiles(rows_XP.shape[1], (LOW_QUANTILE, HIGH_QUANTILE)))
    found = {}
    for name, rows_XP in rows.items():
      counters[name].first(rows_XP)
      mean_P = rows_XP.mean(0)
      found[name] = len(rows_XP), mean_P, ((rows_XP - mean_P) ** 2).sum(0)
    return found

  moments = list(readings.once(first))
  for counter in counters.values():
    counter.turn()
  for _ in readings.once(lambda number, rows: [counters[name].second(rows_XP) for name, rows_XP in rows.items()]):
    pass
  stats = {}
  for name in NAMES:
    count, mean_P, squares_P = 0, np.zeros(()), np.zeros(())
    for part_count, part_mean_P, part_squares_P in (moment[name] for moment in moments):
      apart_P, both = part_mean_P - mean_P, count + part_count
      mean_P = mean_P + apart_P * (part_count / both)
      squares_P = squares_P + part_squares_P + apart_P**2 * (count * part_count / both)
      count = both
    _refuse_few(count)
    stats[name] = NormStats(mean_P, np.sqrt(squares_P / count), *counters[name].result())
  return stats


def _openpi_stats(readings: _Readings) -> dict[str, NormStats]:
  """Returns openpi's statistics: the first reading finds each episode's range, which fixes the bins for the second."""
  summaries = list(readings.once(
    lambda number, rows: {name: Summary.of(rows_XP) for name, rows_XP in rows.items()}))
  bins = list(_bins_of_the_time(summaries))
  counted = readings.once(lambda number, rows: {
    name: histogram(rows_XP, bins[number][name]) for name, rows_XP in rows.items()})
  stats = {name: RunningStats() for name in NAMES}
  for summary, counts in zip(summaries, counted):
    for name, part in summary.items():
      stats[name].extend_range(part)
      stats[name].add(part, counts[name])
  return {name: each.result() for name, each in stats.items()}


def _refuse_few(count: int) -> None:
  if count < 2:
    raise Pi0RagError(f"statistics need two vectors or more, seen: {count}")


def _bins_of_the_time(summaries: Sequence[Mapping[str, Summary]]) -> Iterator[dict[str, np.ndarray]]:
  """Yields for each batch the bins that it is counted in, when batches are added in this order."""
  ranges = {name: RunningStats() for name in NAMES}
  for summary in summaries:
    for name, part in summary.items():
      ranges[name].extend_range(part)
    yield {name: each.edges_PX for name, each in ranges.items() if each.edges_PX is not None}


def _episode_rows(
  mixture: Mixture, place: tuple[int, int], horizon: int, transform: Callable[[dict], dict] | None
) -> dict[str, np.ndarray]:
  """Returns {`state`: float64[X, P], `actions`: float64[X, A]} of one episode."""
  source = mixture.sources[place[0]]
  data = source.dataset.read_episode(place[1], images=False)
  chunks_FTA, _ = action_chunks(data.actions, np.arange(len(data)), horizon)
  state_FP = data.state
  steps = [step for step in (source.transform, transform) if step is not None]
  if steps:
    changed = []
    for state_P, chunk_TA, prompt in zip(state_FP, chunks_FTA, data.prompts):
      sample = {"state": state_P, "actions": chunk_TA, "prompt": prompt}
      for step in steps:
        sample = step(sample)
      changed.append(sample)
    state_FP, chunks_FTA = (np.stack([sample[name] for sample in changed]) for name in NAMES)
  return dict(zip(NAMES, (as_rows(state_FP), as_rows(chunks_FTA))))


def _borders(low_P: np.ndarray, high_P: np.ndarray) -> np.ndarray:
  return np.stack([np.linspace(low, high, BINS + 1) for low, high in zip(low_P, high_P)])


def _rebinned(counts_PX: np.ndarray, old_PX: np.ndarray, new_PX: np.ndarray) -> np.ndarray:
  """Returns the histogram in other bins: each bin's contents go where its left border falls."""
  return np.stack([np.histogram(old[:-1], bins=new, weights=counts)[0]
                   for counts, old, new in zip(counts_PX, old_PX, new_PX)])
