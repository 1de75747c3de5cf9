"""One row for a method over all places: the mean of its cells, each paired with a policy without memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.records import EpisodeRecord
from pi0rag_jax.statistics import CONFIDENCE, Estimate, bounds, number

CellName = tuple[str, str, str, str, int]  # task, condition, policy, stream, stream_episodes
RESAMPLES = 4000
SEED = 0


@dataclass(frozen=True)
class Overall:
  """Means over cells that weigh the same, with 95 % intervals of a paired bootstrap over the seeds of each."""

  success: Estimate
  baseline: Estimate
  failures_removed: Estimate  # net, of the baseline's
  regressions: Estimate  # of what worked with the baseline


def compare(cells_C4: np.ndarray, rng: np.random.Generator, *, resamples: int = RESAMPLES) -> Overall:
  """Returns what a method did over several cells.

  Args:
    cells_C4: int[C, 4], per cell how many episodes it fixed, broke, left successful and left failed.
    rng: of the bootstrap, which draws the seeds of each cell anew; cells are not drawn.
  """
  sizes_C = cells_C4.sum(axis=1)
  drawn_RC4 = np.stack([rng.multinomial(n, row / n, size=resamples) / n for n, row in zip(sizes_C, cells_C4)], axis=1)
  n = int(sizes_C.sum())
  observed = _shares((cells_C4 / sizes_C[:, None]).mean(axis=0))
  drawn = [_shares(row_4) for row_4 in drawn_RC4.mean(axis=1)]
  return Overall(*(_estimate(value, values_R, n) for value, values_R in zip(observed, np.array(drawn).T)))


def rows(cells: Mapping[CellName, Sequence[EpisodeRecord]], baselines: Sequence[str]) -> list[dict[str, Any]]:
  """Returns a row per steered policy, episodes learned from and baseline, over the places where both ran.

  Memories that were taken to another place than they learned in are left out.
  """
  groups: dict[tuple[str, int], list[CellName]] = {}
  for task, condition, policy, stream, episodes in cells:
    if stream and not cells[task, condition, policy, stream, episodes][0].came_from:
      groups.setdefault((policy, episodes), []).append((task, condition, policy, stream, episodes))
  found = []
  for (policy, episodes), names in groups.items():
    for baseline in baselines:
      pairs = [(cells[name[0], name[1], baseline, "", 0], cells[name]) for name in names
               if (name[0], name[1], baseline, "", 0) in cells]
      counts = [c for c in map(_counts, pairs) if c.sum()]
      if counts:
        found.append(_row(policy, episodes, baseline, names, np.stack(counts)))
  return found


def _row(policy: str, episodes: int, baseline: str, names: list[CellName], counts_C4: np.ndarray) -> dict[str, Any]:
  result = compare(counts_C4, np.random.default_rng(SEED))
  return {
    "policy": policy,
    "stream_episodes": episodes,
    "baseline": baseline,
    "tasks": len({name[0] for name in names}),
    "places": len({name[:2] for name in names}),
    "cells": len(counts_C4),
    "n": int(counts_C4.sum()),
    "success_rate": number(result.success.value),
    "interval_95": bounds(result.success),
    "baseline_success_rate": number(result.baseline.value),
    "failures_removed": number(result.failures_removed.value),
    "failures_removed_interval_95": bounds(result.failures_removed),
    "regressions": number(result.regressions.value),
    "regressions_interval_95": bounds(result.regressions),
  }


def _counts(pair: tuple[Sequence[EpisodeRecord], Sequence[EpisodeRecord]]) -> np.ndarray:
  """Returns int[4]: fixed, broken, both succeeded, both failed, on the seeds that neither side crashed on."""
  before, after = ({r.seed: r.policy_succeeded for r in records if not r.crashed} for records in pair)
  kinds = [2 * before[seed] + after[seed] for seed in before.keys() & after.keys()]
  failed, fixed, broken, worked = np.bincount(kinds, minlength=4)
  return np.array([fixed, broken, worked, failed])


def _shares(mean_4: np.ndarray) -> tuple[float, float, float, float]:
  """Returns (success, the baseline's, failures removed, regressions) of mean shares of the four kinds."""
  fixed, broken, worked, failed = mean_4
  removed = (fixed - broken) / (fixed + failed) if fixed + failed else np.nan
  return fixed + worked, broken + worked, removed, broken / (broken + worked) if broken + worked else np.nan


def _estimate(value: float, values_R: np.ndarray, n: int) -> Estimate:
  tail = (1 - CONFIDENCE) / 2
  finite_R = values_R[np.isfinite(values_R)]
  low, high = np.quantile(finite_R, [tail, 1 - tail]) if len(finite_R) else (np.nan, np.nan)
  return Estimate(float(value), float(low), float(high), n)
