"""What the episodes of a sweep amount to: the entries of summary.json."""


import json
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from eval import figures, overall
from eval.provenance import without_paths
from eval.records import ALONE, PARTIAL, EpisodeRecord
from pi0rag_jax import anytime
from pi0rag_jax.pages import page
from pi0rag_jax.pages.page import interval, percent
from pi0rag_jax.statistics import (
  PairedComparison,
  anytime_rate,
  bounds,
  learning_curve,
  number,
  pair_to_json,
  paired_comparison,
  percentiles,
  pooled_percentiles,
  success_rate,
)

# A policy is compared with every one of these that stands before it: the controls, the strongest last, and
# the published recipe.
BASELINES = ("base", "base_z0", "textbook")
CONTROLS = ("base_z0", "base")  # What the headline compares with: the harder control first.
HEADLINE_POLICY = "memory"
BLOCK_EPISODES = 50  # Of a learning curve.
BOOTSTRAP_SEED = 0
STAGES = ("prepare", "policy", "search", "steer", "device", "total")

Summary = dict[str, Any]
Name = TypeVar("Name", bound=Hashable)


def summarize(
  records: Iterable[EpisodeRecord],
  provenance: Mapping[str, Any],
  *,
  baselines: Sequence[str] = BASELINES,
  block: int = BLOCK_EPISODES,
  memory_bytes: Mapping[str, int] | None = None,
  fits: Sequence[Mapping[str, Any]] = (),
  planned: Mapping[overall.CellName, int] = MappingProxyType({}),
  stop_early: bool = False,
) -> Summary:
  """Returns the contents of summary.json; the same records give the same numbers.

  Args:
    records: episodes, each key once (`RecordLog.records`).
    provenance: see `eval.provenance`.
    baselines: policies that later ones are compared with, on shared seeds.
    block: episodes per point of a learning curve.
    memory_bytes: size of each stream's memory; without it the last record's `extra["memory_bytes"]` counts.
    fits: see `eval.fits.facts`.
    planned: episodes of each cell; one that has fewer was stopped early.
    stop_early: comparisons were looked at after every pair, and are tested accordingly.
  """
  records = list(records)
  streams = _grouped((r for r in records if r.phase == "stream"), lambda r: (r.stream, r.policy))
  evaluated = [r for r in records if r.phase == "eval"]
  cells = _grouped(evaluated, lambda r: (r.task, r.condition, r.policy, r.stream, r.stream_episodes))
  found = [_cell(cells, name, baselines, planned.get(name)) for name in _cell_order(cells)]
  _adjust([pair for cell in found for pair in cell["paired_vs"].values()], stop_early)
  return {
    "cells": found,
    "stop_early": stop_early,
    "overall": overall.rows(cells, baselines, streams=[r for r in records if r.phase == "stream"],
                            memory_bytes=memory_bytes or {}, fits=fits, anytime_valid=stop_early),
    "streams": [_stream(group, block, memory_bytes or {}) for group in streams.values()],
    "latency": _latency_by_policy(evaluated),
    "crashes": [_crash(record) for record in records if record.crashed],
    "provenance": dict(provenance),
  }


def _adjust(pairs: list[dict[str, Any]], stop_early: bool) -> None:
  """Adds to the comparisons of a table the p-value of each among all of them."""
  tested = [pair["p_value_anytime" if stop_early else "p_value"] for pair in pairs]
  for pair, p in zip(pairs, anytime.holm(tested)):
    pair["p_holm"] = p


def _grouped(records, name: Callable[[EpisodeRecord], Name]) -> dict[Name, list[EpisodeRecord]]:
  groups: dict[Name, list[EpisodeRecord]] = {}
  for record in records:
    groups.setdefault(name(record), []).append(record)
  return groups


def _partial_successes(ended: Sequence[EpisodeRecord]) -> int | None:
  """Returns in how many episodes the policy did the task partly, or all of it; None where the world does not tell."""
  told = [r for r in ended if PARTIAL in r.extra]
  return sum(r.policy_succeeded or (r.extra[PARTIAL] and not r.corrected) for r in told) if told else None


def _cell_order(cells) -> list[tuple]:
  """Returns the cells by task and condition as they first came, the policies of each in their order."""
  places = list(dict.fromkeys(name[:2] for name in cells))
  arrival = list(cells)
  return sorted(cells, key=lambda n: (places.index(n[:2]), figures.policy_rank(n[2]), arrival.index(n)))


def _cell(cells, name: tuple, baselines: Sequence[str], planned: int | None) -> dict[str, Any]:
  """Returns one cell of the contract, with the paired details, stages and costs beside it."""
  task, condition, policy, stream, stream_episodes = name
  ended = [r for r in cells[name] if not r.crashed]
  successes = sum(r.policy_succeeded for r in ended)
  rate = success_rate([r.policy_succeeded for r in ended])
  failures = Counter(r.failure_kind or "unspecified" for r in ended if not r.policy_succeeded)
  paired = _paired_with_baselines(cells, name, baselines)
  stages = _latency_by_stage(ended)
  decisions = sum(r.decisions for r in ended)
  return {
    "policy": policy,
    "task": task,
    "condition": condition,
    "stream": stream,
    "stream_episodes": stream_episodes,
    "came_from": cells[name][0].came_from,
    "n": rate.n,
    "planned": planned,
    "stopped_early": planned is not None and len(cells[name]) < planned,
    "successes": successes,
    "partial_successes": _partial_successes(ended),
    "success_rate": number(rate.value),
    "interval_95": bounds(rate),
    "interval_anytime_95": bounds(anytime_rate(successes, rate.n - successes)),
    "failures_removed_vs": {baseline: pair["failures_removed"] for baseline, pair in paired.items()},
    "regressions_vs": {baseline: pair["regressions"] for baseline, pair in paired.items()},
    "paired_vs": paired,
    "steps_mean": _mean([r.steps for r in ended]),
    "steps_mean_successes": _mean([r.steps for r in ended if r.policy_succeeded]),
    "failures_by_kind": dict(failures.most_common()),
    "latency_ms": stages.get("total", percentiles([])),
    "latency_ms_by_stage": stages,
    "decisions": decisions,
    "deadline_misses": sum(r.deadline_misses for r in ended),
    "abstained_fraction": sum(r.abstained for r in ended) / decisions if decisions else None,
    "memory_records": max((r.memory_records for r in ended), default=0),
    "crashed": len(cells[name]) - len(ended),
  }


def _paired_with_baselines(cells, name: tuple, baselines: Sequence[str]) -> dict[str, dict[str, Any]]:
  """Returns the comparison with each baseline before this policy that ran here (with the same memory)."""
  task, condition, policy, stream, stream_episodes = name
  earlier = baselines[: baselines.index(policy)] if policy in baselines else baselines
  paired = {}
  for baseline in earlier:
    candidates = [(task, condition, baseline, stream, stream_episodes), (task, condition, baseline, "", 0)]
    match = next((candidate for candidate in candidates if candidate in cells), None)
    if match:
      paired[baseline] = pair_to_json(_compare(cells[match], cells[name]))
  return paired


def _compare(baseline: list[EpisodeRecord], treatment: list[EpisodeRecord]) -> PairedComparison:
  """Returns the comparison on the seeds that neither side crashed on; the bootstrap repeats exactly."""
  before = {r.seed: r.policy_succeeded for r in baseline if not r.crashed}
  after = {r.seed: r.policy_succeeded for r in treatment if not r.crashed}
  seeds = sorted(before.keys() & after.keys())  # not as they ended: a failure takes longer
  rng = np.random.default_rng(BOOTSTRAP_SEED)
  return paired_comparison([before[seed] for seed in seeds], [after[seed] for seed in seeds], rng)


def _stream(group: list[EpisodeRecord], block: int, memory_bytes: Mapping[str, int]) -> dict[str, Any]:
  """Returns what a stream of episodes taught: success by block, and its cost in corrections and records."""
  group = sorted(group, key=lambda record: record.index)
  ended = [r for r in group if not r.crashed]
  curve = learning_curve([r.index for r in ended], [r.policy_succeeded for r in ended], block=block)
  last = ended[-1] if ended else group[-1]
  return {
    "stream": last.stream,
    "policy": last.policy,
    "task": ", ".join(dict.fromkeys(r.task for r in group)),
    "condition": ", ".join(dict.fromkeys(r.condition for r in group)),
    "episodes": len(group),
    "learning_curve": [_block(b, ended) for b in curve],
    "corrected_episodes": sum(r.corrected for r in group),
    "records": last.memory_records,
    "records_added": sum(r.records_added for r in group),
    "memory_bytes": memory_bytes.get(last.stream, last.extra.get("memory_bytes")),
    "crashed": len(group) - len(ended),
    "promise": _promise(ended),
  }


def _promise(ended: list[EpisodeRecord]) -> dict[str, int] | None:
  """Returns what a stream's memory broke for certain, of how much; None where nothing was promised."""
  if not any(r.extra.get("trust") == 0 or ALONE in r.extra for r in ended):
    return None
  said = [r for r in ended if r.had_a_say]
  worked = [r for r in said if r.worked_alone]
  return {"had_a_say": len(said), "repeated": sum(ALONE in r.extra for r in ended),
          "worked_at_least": len(worked) + sum(r.policy_succeeded for r in ended if not r.had_a_say),
          "broken": sum(not r.policy_succeeded for r in worked),
          "mended": sum(r.policy_succeeded and r.worked_alone is False for r in said)}


def _block(block, ended: list[EpisodeRecord]) -> dict[str, Any]:
  return {
    "start": block.start,
    "stop": block.stop,
    "n": block.rate.n,
    "success_rate": number(block.rate.value),
    "interval_95": bounds(block.rate),
    "corrected": sum(r.corrected for r in ended if block.start <= r.index < block.stop),
  }


def _latency_by_policy(evaluated: list[EpisodeRecord]) -> list[dict[str, Any]]:
  """Returns one row per policy and timed stage, pooled over every evaluation episode that did not crash."""
  rows = []
  groups = _grouped((r for r in evaluated if not r.crashed), lambda record: record.policy)
  for policy in sorted(groups, key=figures.policy_rank):
    for stage, values in _latency_by_stage(groups[policy]).items():
      if values["p50"] is not None:
        rows.append({"policy": policy, "stage": stage, **values})
  return rows


def _latency_by_stage(ended: list[EpisodeRecord]) -> dict[str, dict[str, float | None]]:
  """Returns p50, p95 and p99 in milliseconds of every stage, STAGES first."""
  found = dict.fromkeys(stage for record in ended for stage in record.latency_ms)
  stages = [*(s for s in STAGES if s in found), *(s for s in found if s not in STAGES)]
  return {s: pooled_percentiles([r.latency_ms[s] for r in ended if s in r.latency_ms]) for s in stages}


def _crash(record: EpisodeRecord) -> dict[str, Any]:
  """Returns where an episode crashed and the last line of its traceback (all of it is in records.jsonl)."""
  lines = record.error.strip().splitlines() or ["no traceback"]
  where = {name: getattr(record, name) for name in ("phase", "policy", "task", "condition", "stream", "seed")}
  return {**where, "error": without_paths(lines[-1])}


def _mean(values) -> float | None:
  return float(np.mean(values)) if values else None


def write_summary(path: str | os.PathLike, summary: Summary) -> None:
  """Writes summary.json at once: a reader sees the old file or the whole new one."""
  page.write_text(path, json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def anytime_words(succeeded_N: Sequence[bool]) -> str:
  """Returns '87.1 % [70.2, 96.1] success', the interval being one that holds wherever one stops."""
  rate = anytime_rate(sum(succeeded_N), len(succeeded_N) - sum(succeeded_N))
  return f"{percent(number(rate.value))} % {interval(bounds(rate))} success"
