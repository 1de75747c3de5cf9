"""How fast batches come, and that memory does not grow with a data set: `python -m pi0rag_jax.data bench`."""

import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pi0rag_jax.data import cache
from pi0rag_jax.data.arrays import load_into_memory
from pi0rag_jax.data.dataset import Dataset
from pi0rag_jax.data.formats import CACHE_HEADER, open_dataset
from pi0rag_jax.data.loader import Loader
from pi0rag_jax.data.sampling import Mixture, Sampler

BATCH, HORIZON, CAMERAS = 64, 50, 2
SMALL_PX, LARGE_PX = 64, 224
BLOCKS, BLOCK_S = 5, 1.0
EPISODE_FRAMES = 1000


def measure(dataset: Dataset) -> Iterator[str]:
  """Yields one line per figure: the median of several blocks, and their range."""
  cameras = dataset.cameras[:CAMERAS]
  small = load_into_memory(dataset, image_size=SMALL_PX, cameras=cameras)
  rates = batch_rates(small)
  yield (f"in memory, {SMALL_PX} px, {len(cameras)} cameras: {_spread(rates)} batches/s of {BATCH} samples "
         f"({dataset.format}, {dataset.num_frames} frames)")
  with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    cached = cache.build_cache(dataset, folder, image_size=LARGE_PX, cameras=cameras)
    built_s = time.perf_counter() - start
    frames = BATCH * len(cameras)
    yield f"building the cache, {LARGE_PX} px: {cached.num_frames * len(cameras) / built_s:.0f} pictures/s decoded"
    yield f"from the cache, {LARGE_PX} px: {_spread([frames * rate for rate in batch_rates(cached)])} pictures/s"
  with tempfile.TemporaryDirectory() as folder:
    large = sparse_cache(Path(folder), 2 * _memory_bytes())
    batch_rates(large, blocks=1)
    before = resident_mb()
    with Peak() as peak:
      rates = batch_rates(large)
    read = BLOCKS * BLOCK_S * statistics.median(rates) * BATCH
    yield (f"a sparse file of {2 * _memory_bytes() / 1e9:.0f} GB, twice this machine's memory: {before:.0f} MB "
           f"resident, at most {peak.mb:.0f} MB while {read:.0f} samples of {large.num_frames} are read at random")


def batch_rates(dataset: Dataset, *, blocks: int = BLOCKS) -> list[float]:
  """Returns the batches per second of each block of time, by a loader with one thread, as training reads them."""
  rates = []
  with Loader(Sampler(Mixture(dataset), batch_size=BATCH, seed=0), horizon=HORIZON) as loader:
    next(loader)
    for _ in range(blocks):
      count, start = 0, time.perf_counter()
      while (passed := time.perf_counter() - start) < BLOCK_S:
        next(loader)
        count += 1
      rates.append(count / passed)
  return rates


def sparse_cache(folder: Path, size_bytes: int) -> Dataset:
  """Returns a cache of black pictures that takes no space on the disk, whatever its size."""
  shape = [LARGE_PX, LARGE_PX, 3]
  episodes = max(1, size_bytes // (EPISODE_FRAMES * CAMERAS * LARGE_PX * LARGE_PX * 3))
  header = {"version": cache.VERSION, "source": "synthetic", "format": "synthetic", "fps": 10.0, "state": [8],
            "actions": [7], "lengths": [EPISODE_FRAMES] * episodes,
            "rates": [10.0] * episodes, "images": {"base": shape, "wrist": shape}}
  (folder / CACHE_HEADER).write_text(json.dumps(header))
  (folder / cache.MARKS).write_bytes(bytes([cache.DONE]) * episodes)
  (folder / cache.PROMPTS).write_text(json.dumps("nothing") + "\n")
  cache.open_arrays(folder, header, writable=True)
  return open_dataset(folder)


class Peak:
  """The largest resident memory within a block, looked at every few milliseconds."""

  def __init__(self):
    self.mb, self._stop = 0.0, threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)

  def __enter__(self) -> "Peak":
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._stop.set()
    self._thread.join()

  def _watch(self) -> None:
    while not self._stop.wait(0.005):
      self.mb = max(self.mb, resident_mb())


def resident_mb() -> float:
  """Returns this process's resident memory, files that it maps included."""
  pages = int(Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _memory_bytes() -> int:
  return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _spread(values: list[float]) -> str:
  return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"
