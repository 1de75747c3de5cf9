"""What came of chains of tasks: how many tasks are done on average, how often the first to the last, and which fail."""

import collections
from collections.abc import Sequence
from typing import Any

from eval.records import STAGES, EpisodeRecord
from pi0rag_jax import statistics
from pi0rag_jax.statistics import bounds, wilson
from pi0rag_jax.worlds.world import Family


def summarize(records: Sequence[EpisodeRecord], family: Family, tasks: Sequence[str]) -> list[dict[str, Any]]:
  """Returns a row for each policy and condition, in the order in which they came.

  Args:
    records: of episodes, each of which is a chain or a link of one.
    tasks: whose episodes follow each other in a chain.
  """
  rows: dict[tuple[str, str], list[EpisodeRecord]] = {}
  for record in records:
    rows.setdefault((record.policy, record.condition), []).append(record)
  return [_row(policy, condition, found, family, tasks) for (policy, condition), found in rows.items()]


def _row(policy: str, condition: str, records: Sequence[EpisodeRecord], family: Family, tasks: Sequence[str]
         ) -> dict[str, Any]:
  crashed = {record.seed for record in records if record.crashed}
  chains: dict[int, int] = dict.fromkeys((record.seed for record in records if record.seed not in crashed), 0)
  tried, failed = collections.Counter[str](), collections.Counter[str]()
  for record in records:
    if record.seed in crashed:
      continue
    asked, done = family.asks(record.task, record.seed), tasks_done(record)
    chains[record.seed] += done
    tried.update(asked[: done + 1])
    failed.update(asked[done : done + 1])
  length = sum(len(family.asks(task, next(iter(chains), 0))) for task in tasks)
  counts = [sum(done >= place for done in chains.values()) for place in range(1, length + 1)]
  rates = [wilson(count, len(chains)) for count in counts]
  latencies = [record.latency_ms for record in records if record.latency_ms]
  return {
    "policy": policy, "condition": condition, "n": len(chains), "crashed": len(crashed), "tasks_per_chain": length,
    "average_length": round(sum(chains.values()) / max(len(chains), 1), 4),
    # The average is the sum of the rates: so are these bounds, which hold at least as often.
    "average_length_interval_95": [round(sum(bound), 4) for bound in zip(*((rate.low, rate.high) for rate in rates))],
    "successes": counts, "success_rates": [statistics.number(round(rate.value, 4)) for rate in rates],
    "intervals_95": [bounds(rate) for rate in rates],
    "ticks_mean": round(sum(record.steps for record in records) / max(len(chains), 1), 1),
    "decisions": sum(record.decisions for record in records),
    "corrected": sum(record.corrected for record in records),
    "memory_records": max((record.memory_records for record in records), default=0),
    "latency_ms": {stage: statistics.pooled_percentiles([one[stage] for one in latencies if stage in one])
                   for stage in sorted({stage for one in latencies for stage in one})},
    "by_task": {task: {"tried": tried[task], "failed": failed[task]} for task in sorted(tried)}}


def tasks_done(record: EpisodeRecord) -> int:
  """Returns how many tasks of an episode the policy did alone."""
  return int(record.extra.get(STAGES, record.policy_succeeded))


def in_words(row: dict[str, Any]) -> str:
  """Returns a row for people."""
  low, high = row["average_length_interval_95"]
  shares = " | ".join(f"{place}: {100 * (rate or 0):.1f} %" for place, rate in enumerate(row["success_rates"], 1))
  worst = sorted(row["by_task"].items(), key=lambda item: -item[1]["failed"])[:3]
  fails = ", ".join(f"{task} {count['failed']} of {count['tried']}" for task, count in worst if count["failed"])
  return (f"{row['policy']} ({row['condition']}): {row['average_length']:.2f} of {row['tasks_per_chain']} tasks in a "
          f"row ({low:.2f} to {high:.2f}), {row['n']} chains; {shares}" + (f"; fails in {fails}" if fails else ""))
