"""Times of calls, made in turn so that a busy machine slows all of them alike."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np

Name = TypeVar("Name")


def interleaved(calls: Mapping[Name, Callable], *, repeats: int) -> dict[Name, np.ndarray]:
  """Returns float[repeats] ms of each call, waited for; one call of each, uncounted, comes before."""
  taken: dict[Name, list[float]] = {name: [] for name in calls}
  for _ in range(repeats + 1):
    for name, call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call())
      taken[name].append(1000 * (time.perf_counter() - start))
  return {name: np.array(ms[1:]) for name, ms in taken.items()}


def summary(taken_ms) -> dict[str, float]:
  """Returns quantiles of some times, in ms."""
  return {f"p{q}_ms": round(float(np.percentile(taken_ms, q)), 3) for q in (50, 95, 99)}


def ratio(slow_ms, fast_ms, *, draws: int = 2000) -> dict[str, float]:
  """Returns by how much the medians differ, with a 95 % bootstrap interval over the paired turns."""
  turns = np.random.default_rng(0).integers(0, len(slow_ms), (draws, len(slow_ms)))
  ratios = np.median(slow_ms[turns], axis=1) / np.median(fast_ms[turns], axis=1)
  low, high = np.quantile(ratios, (0.025, 0.975))
  return {"ratio": round(float(np.median(slow_ms) / np.median(fast_ms)), 3), "low": round(float(low), 3),
          "high": round(float(high), 3)}
