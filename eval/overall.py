"""One row for a method over all places: the mean of its cells, each paired with a policy without memory.

A memory is evaluated where it was taught ('own'), or, put together with those of other places, where one of these was
taught ('pooled') or none ('held_out').
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.stats import t as student

from eval.records import EpisodeRecord
from pi0rag_jax import anytime
from pi0rag_jax.statistics import CONFIDENCE, Estimate, bounds, mcnemar_p_value, number, pooled_percentiles

CellName = tuple[str, str, str, str, int]  # task, condition, policy, stream, stream_episodes
OWN, POOLED, HELD_OUT = MEMORIES = ("own", "pooled", "held_out")
# In each place that of the controls which succeeds most often there, by the seeds of the evaluation: a baseline that
# has chosen with hindsight, so that no gain is owed to a weak one.
BETTER = "better_control"
CONTROL = "base"  # and every policy whose name goes on from it, as 'base_z0'
RESAMPLES = 4000
SEED = 0


@dataclass(frozen=True)
class Overall:
  """Means over cells that weigh the same, with 95 % intervals of a paired bootstrap over the seeds of each."""

  success: Estimate
  baseline: Estimate
  failures_removed: Estimate  # net, of the baseline's
  regressions: Estimate  # of what worked with the baseline
  difference: Estimate  # of the rates of success


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


def over_streams(cells_C4: np.ndarray, places_C: Sequence[Any], episodes: Overall) -> Overall | None:
  """Returns the same means with intervals that redraw streams too; None where no place has several.

  What streams of a place add is taken to be the same everywhere: a t-interval of their pooled variance, whose half
  widths are added to those of the episodes as independent errors are. Streams share the evaluation's seeds, so that
  neither of the two holds the other.

  Args:
    cells_C4: see `compare`.
    places_C: where each cell's stream ran.
    episodes: what `compare` returned for them.
  """
  shares_C4 = cells_C4 / cells_C4.sum(axis=1, keepdims=True)
  groups = [np.flatnonzero([place == here for place in places_C]) for here in dict.fromkeys(places_C)]
  freedom = len(places_C) - len(groups)
  if not freedom:
    return None
  fixed_C, broken_C, worked_C, failed_C = shares_C4.T
  ratios = ((fixed_C + worked_C, None), (broken_C + worked_C, None), (fixed_C - broken_C, fixed_C + failed_C),
            (broken_C, broken_C + worked_C), (fixed_C - broken_C, None))
  widen = student.ppf((1 + CONFIDENCE) / 2, freedom)
  found = []
  for (top_C, bottom_C), estimate in zip(ratios, (episodes.success, episodes.baseline, episodes.failures_removed,
                                                  episodes.regressions, episodes.difference)):
    # How much each cell moves the mean; of a ratio of means, to first order.
    moves_C = top_C if bottom_C is None else (top_C - estimate.value * bottom_C) / max(bottom_C.mean(), 1e-12)
    spread = sum(((moves_C[rows] - moves_C[rows].mean()) ** 2).sum() for rows in groups) / freedom
    half = widen * np.sqrt(spread / len(places_C))
    found.append(Estimate(estimate.value, estimate.value - np.hypot(estimate.value - estimate.low, half),
                          estimate.value + np.hypot(estimate.high - estimate.value, half), estimate.n))
  return Overall(*found)


@dataclass(frozen=True)
class _Cost:
  """What a stream took."""

  corrected_episodes: int
  helped_s: float  # that somebody else acted


def rows(cells: Mapping[CellName, Sequence[EpisodeRecord]], baselines: Sequence[str], *,
         streams: Iterable[EpisodeRecord] = (), memory_bytes: Mapping[str, int] = MappingProxyType({}),
         fits: Sequence[Mapping[str, Any]] = (), anytime_valid: bool = False) -> list[dict[str, Any]]:
  """Returns a row per policy, episodes learned from, kind of memory and baseline, over the places where both ran.

  Memories that were taken to another place than they learned in are left out. The controls have rows of their own
  against the better one of them.

  Args:
    streams: the records of all streams.
    memory_bytes: of each stream's memory.
    fits: see `eval.fits.facts`.
    anytime_valid: cells were stopped by what they showed; their tests are ones that allow it.
  """
  taught, streamed = set(), {}
  for record in streams:
    taught.add((record.task, record.condition))
    streamed.setdefault(record.stream, []).append(record)
  groups: dict[tuple[str, int, str], list[CellName]] = {}
  for name, records in cells.items():
    task, condition, policy, stream, episodes = name
    if (stream and not records[0].came_from) or is_control(policy):
      held_out = bool(taught) and (task, condition) not in taught
      where = HELD_OUT if held_out else POOLED if records[0].pooled else OWN
      groups.setdefault((policy, episodes, where), []).append(name)
  found = []
  for (policy, episodes, where), names in sorted(groups.items(), key=lambda group: MEMORIES.index(group[0][2])):
    # A control is compared with the better one alone, and only where something was learned beside it.
    compared = (BETTER,) if is_control(policy) else (*baselines, BETTER)
    if is_control(policy) and not streamed:
      continue
    for baseline in compared:
      pairs = {name: (before, cells[name]) for name in names if (before := _baseline(cells, name, baseline))}
      counts = {name: c for name, pair in pairs.items() if (c := _counts(pair)).sum()}
      if counts:
        row = _row(policy, episodes, baseline, counts, anytime_valid)
        costs = [_cost(streamed[name[3]], episodes) for name in names if name[3] in streamed]
        sizes = [memory_bytes[name[3]] for name in names if name[3] in memory_bytes]
        mine = [fit for fit in fits if fit["policy"] == policy and fit["stream_episodes"] == episodes
                and fit["stream"] in {name[3] for name in names}]
        found.append({**row, "memory": where, **_spent(row, costs), "memory_bytes": _mean(sizes),
                      "fit_bytes": _mean([fit["bytes"] for fit in mine]),
                      "fit_seconds": _mean([fit["seconds"] + fit["inversion_seconds"] for fit in mine]),
                      "inversion_error": _mean([fit["inversion_error"] for fit in mine if fit["inversion_error"]]),
                      "latency_ms": _latency([record for name in names for record in cells[name]])})
  for baseline in {row["baseline"] for row in found}:
    family = [row for row in found if row["baseline"] == baseline]
    for row, p in zip(family, anytime.holm([row["p_value"] for row in family])):
      row["p_holm"] = p
  return found


def _baseline(cells: Mapping[CellName, Sequence[EpisodeRecord]], name: CellName, baseline: str
              ) -> Sequence[EpisodeRecord] | None:
  """Returns the episodes of a policy without memory in a cell's place; None where it did not run there."""
  if baseline != BETTER:
    return cells.get((name[0], name[1], baseline, "", 0))
  ran = [records for other, records in cells.items() if other[:2] == name[:2] and not other[3] and is_control(other[2])]
  return max(ran, key=lambda records: np.mean([r.policy_succeeded for r in records if not r.crashed] or [0.0]),
             default=None)


def is_control(policy: str) -> bool:
  """Returns whether a policy is one without memory, at whatever pace, that others are compared with."""
  return policy == CONTROL or policy.startswith(f"{CONTROL}_")


def _cost(records: Sequence[EpisodeRecord], episodes: int) -> _Cost:
  first = [record for record in records if record.index < episodes]
  return _Cost(sum(record.corrected for record in first), sum(record.extra.get("helped_s", 0.0) for record in first))


def _spent(row: Mapping[str, Any], costs: Sequence[_Cost]) -> dict[str, float | None]:
  """Returns what a person gave in a place, on average, and the points of success that came of each part of it."""
  corrected = _mean([cost.corrected_episodes for cost in costs])
  minutes = _mean([cost.helped_s / 60 for cost in costs])
  points = 100 * row["difference"]
  return {"corrected_episodes": corrected, "helped_minutes": minutes,
          "points_per_corrected_episode": points / corrected if corrected else None,
          "points_per_helped_minute": points / minutes if minutes else None}


def _latency(records: Sequence[EpisodeRecord]) -> float | None:
  """Returns the median milliseconds of a decision for one robot."""
  return pooled_percentiles([r.latency_ms["total"] for r in records if "total" in r.latency_ms])["p50"]


def _mean(values: Sequence[float]) -> float | None:
  return float(np.mean(values)) if values else None


def _row(policy: str, episodes: int, baseline: str, counts: Mapping[CellName, np.ndarray], anytime_valid: bool
         ) -> dict[str, Any]:
  counts_C4 = np.stack(list(counts.values()))
  result = compare(counts_C4, np.random.default_rng(SEED))
  streams = over_streams(counts_C4, [name[:2] for name in counts], result)
  fixed, broken, *_ = counts_C4.sum(axis=0).tolist()
  return {
    "policy": policy,
    "stream_episodes": episodes,
    "baseline": baseline,
    "tasks": len({name[0] for name in counts}),
    "places": len({name[:2] for name in counts}),
    "cells": len(counts_C4),
    "n": int(counts_C4.sum()),
    "success_rate": number(result.success.value),
    "interval_95": bounds(result.success),
    "baseline_success_rate": number(result.baseline.value),
    "difference": result.difference.value,
    "difference_interval_95": bounds(result.difference),
    "fixed": fixed,
    "regressed": broken,
    "failures_removed": number(result.failures_removed.value),
    "failures_removed_interval_95": bounds(result.failures_removed),
    "regressions": number(result.regressions.value),
    "regressions_interval_95": bounds(result.regressions),
    "over_streams_interval_95": streams and {
      name: bounds(getattr(streams, name)) for name in ("success", "difference", "failures_removed", "regressions")},
    "p_value": _anytime_p_value(counts_C4) if anytime_valid else mcnemar_p_value(fixed, broken),
  }


def _anytime_p_value(counts_C4: np.ndarray) -> float:
  """Returns the p-value of "mending and breaking are equally likely everywhere", whenever each cell was stopped.

  Cells run one after the other, so their capital is handed on from each to the next.
  """
  capital_C = anytime.log_e_value(counts_C4[:, 0], counts_C4[:, 1], 0.5)
  return float(np.exp(-max(0.0, capital_C.sum())))


def _counts(pair: tuple[Sequence[EpisodeRecord], Sequence[EpisodeRecord]]) -> np.ndarray:
  """Returns int[4]: fixed, broken, both succeeded, both failed, on the seeds that neither side crashed on."""
  before, after = ({r.seed: r.policy_succeeded for r in records if not r.crashed} for records in pair)
  kinds = [2 * before[seed] + after[seed] for seed in before.keys() & after.keys()]
  failed, fixed, broken, worked = np.bincount(kinds, minlength=4)
  return np.array([fixed, broken, worked, failed])


def _shares(mean_4: np.ndarray) -> tuple[float, float, float, float, float]:
  """Returns (success, the baseline's, failures removed, regressions, difference) of mean shares of the four kinds."""
  fixed, broken, worked, failed = mean_4
  removed = (fixed - broken) / (fixed + failed) if fixed + failed else np.nan
  lost = broken / (broken + worked) if broken + worked else np.nan
  return fixed + worked, broken + worked, removed, lost, fixed - broken


def _estimate(value: float, values_R: np.ndarray, n: int) -> Estimate:
  tail = (1 - CONFIDENCE) / 2
  finite_R = values_R[np.isfinite(values_R)]
  low, high = np.quantile(finite_R, [tail, 1 - tail]) if len(finite_R) else (np.nan, np.nan)
  return Estimate(float(value), float(low), float(high), n)
