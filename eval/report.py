"""From episode records to what people read: summary.json, a terminal table, one self-contained HTML page."""

import json
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import jinja2
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from eval import figures, overall
from eval.provenance import in_words, without_paths
from eval.records import ALONE, EpisodeRecord
from pi0rag_jax import anytime
from pi0rag_jax.pages import page, panels
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
  verdict,
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


def write_report(folder: str | os.PathLike, summary: Summary, clips: Sequence[Mapping[str, Any]] = ()) -> None:
  """Writes summary.json, the charts as PNG and report.html into `folder`; a sweep ends with this call."""
  folder = Path(folder)
  write_summary(folder / "summary.json", summary)
  panels.write_pngs(folder, summary, figures.CHARTS)
  write_html(folder / "report.html", summary, clips)


def terminal_table(summary: Summary) -> Table:
  """Returns the cells as a table of 80 columns: success, and failures removed against the harder control."""
  title = "Success [95 % interval] and failures removed vs the control (+fixed -broken)"
  table = Table(
    title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True
  )
  table.add_column("policy", overflow="fold")
  for name in ("n", "success %", "removed %", "p50 ms", "crashed"):
    table.add_column(name, justify="right", no_wrap=True)
  previous = None
  for cell in summary["cells"]:
    where = figures.place_label(cell)
    if where != previous:
      table.add_section()
      table.add_row(Text(where, style="bold"))
    previous = where
    bounds_95 = cell["interval_anytime_95" if cell["stopped_early"] else "interval_95"]
    rate = f"{percent(cell['success_rate'])} {interval(bounds_95)}"
    label = f"  {figures.cell_label(cell, summary['cells'])}"
    latency = milliseconds(cell["latency_ms"]["p50"])
    count = f"{cell['n']} of {cell['planned']}" if cell["stopped_early"] else cell["n"]
    row = [label, count, rate, _removed_text(cell), latency, cell["crashed"] or ""]
    table.add_row(*(Text(str(item)) for item in row))
  return table


def method_table(summary: Summary) -> Table | None:
  """Returns every method against the better control of each place, in 80 columns; None where nobody has learned."""
  found = method_rows(summary)
  if not found:
    return None
  title = "Methods against the better control of each place, means over places (+fixed -broken)"
  table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False,
                collapse_padding=True)
  table.add_column("method", overflow="fold")
  for name in ("success %", "removed %", "fixed, broken", "p Holm", "ms", "fit s"):
    table.add_column(name, justify="right", no_wrap=True)
  previous = None
  for row in found:
    where = f"{figures.MEMORY_LABELS[row['memory']]}, {row['places']} places"
    if where != previous:
      table.add_section()
      table.add_row(Text(where, style="bold"))
    previous = where
    removed = "-" if row["failures_removed"] is None else (
      f"{percent(row['failures_removed'], 0)} {interval(row['failures_removed_interval_95'], 0)}")
    seconds = "" if row["fit_seconds"] is None else f"{row['fit_seconds']:.0f}"
    label = f"  {figures.policy_label(row['policy'])}" + f" ({row['stream_episodes']})" * bool(row["stream_episodes"])
    cells = [label, percent(row["success_rate"]), removed, f"+{row['fixed']} -{row['regressed']}",
             p_value(row["p_holm"]), milliseconds(row["latency_ms"]), seconds]
    table.add_row(*(Text(str(item)) for item in cells))
  return table


def method_rows(summary: Summary) -> list[dict[str, Any]]:
  """Returns the rows of all methods against the better control, where more than one was taught."""
  found = [row for row in summary["overall"] if row["baseline"] == overall.BETTER]
  return found if any(row["stream_episodes"] for row in found) else []


def _removed_text(cell: Mapping[str, Any]) -> str:
  """Returns '74 (+45 -2)': the net share in per cent, what was fixed and what broke; '' without a control."""
  pair = next((cell["paired_vs"][c] for c in CONTROLS if c in cell["paired_vs"]), None)
  return f"{percent(pair['failures_removed'], 0)} (+{pair['fixed']} -{pair['regressed']})" if pair else ""


def p_value(value: float) -> str:
  """Returns '< 0.001', or the probability with as many digits as matter."""
  if value < 0.001:
    return "< 0.001"
  return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def anytime_words(succeeded_N: Sequence[bool]) -> str:
  """Returns '87.1 % [70.2, 96.1] success', the interval being one that holds wherever one stops."""
  rate = anytime_rate(sum(succeeded_N), len(succeeded_N) - sum(succeeded_N))
  return f"{percent(number(rate.value))} % {interval(bounds(rate))} success"


def milliseconds(value: float | None) -> str:
  """Returns three significant digits, '-' where nothing was timed."""
  return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def findings(summary: Summary) -> list[dict[str, Any]]:
  """Returns, per setting, what the memory did to the harder control there: a verdict and its numbers.

  Of a memory that was evaluated several times while it learned, the last evaluation counts. What is called clear holds
  for all settings together.
  """
  policies = sorted({c["policy"] for c in summary["cells"]} - set(CONTROLS), key=figures.policy_rank)
  policy = HEADLINE_POLICY if HEADLINE_POLICY in policies else next(iter(policies), None)
  last: dict[tuple, int] = {}
  for cell in summary["cells"]:
    where = (*figures.place(cell), cell["stream"])
    last[where] = max(last.get(where, 0), cell["stream_episodes"])
  found = []
  for cell in summary["cells"]:
    if cell["stream_episodes"] < last[*figures.place(cell), cell["stream"]]:
      continue
    control = next((c for c in CONTROLS if c in cell["paired_vs"]), None)
    if cell["policy"] == policy and control and cell["paired_vs"][control]["n"]:
      found.append({"cell": cell, "control": control, "pair": cell["paired_vs"][control]})
  tested = [item["pair"]["p_value_anytime" if summary["stop_early"] else "p_value"] for item in found]
  for item, p in zip(found, anytime.holm(tested)):
    pair = item["pair"]
    item["verdict"] = verdict(pair["fixed"], pair["regressed"], pair["both_failed"], p)
  return found


def headline(summary: Summary) -> str:
  """Returns the result in one sentence, whichever way it went."""
  found = findings(summary)
  if not found:
    return "No policy was evaluated beside a control on the same seeds, so there is nothing to compare yet."
  name = _sentence_name(found[0]["cell"]["policy"])
  control = figures.policy_label(found[0]["control"])
  if len(found) == 1:
    return _single_headline(name, control, found[0])
  counts = Counter(item["verdict"] for item in found)
  if not counts["better"] and not counts["worse"]:
    return f"{name} made no clear difference in any of {len(found)} settings, compared with {control}."
  sides = [("helped", counts["better"]), ("hurt", counts["worse"])]
  (verb, most), (other_verb, least) = sorted(sides, key=lambda side: -side[1])
  effect = f"clearly {verb} in {most} of {len(found)} settings and clearly {other_verb} in {least or 'none'}"
  return f"{name} {effect}, compared with {control}."


def _sentence_name(policy: str) -> str:
  return "The memory" if policy == HEADLINE_POLICY else figures.policy_label(policy).capitalize()


def _single_headline(name: str, control: str, finding: Mapping[str, Any]) -> str:
  pair = finding["pair"]
  changes = f"it fixed {pair['fixed']} and broke {pair['regressed']} of {pair['n']} episodes"
  if pair["failures_removed"] is None:
    return f"{name} had nothing to remove, for {control} never failed here: {changes}."
  if finding["verdict"] == "worse":
    return f"{name} made things worse than {control}: {changes}."
  if finding["verdict"] != "better":
    return f"{name} made no clear difference, compared with {control}: {changes}."
  low, high = (percent(bound, 0) for bound in pair["failures_removed_interval_95"])
  share = percent(pair["failures_removed"], 0)
  return f"{name} removed {share} % of the failures of {control} (95 % interval {low} to {high} %)."


def write_html(path: str | os.PathLike, summary: Summary, clips: Sequence[Mapping[str, Any]] = ()) -> None:
  """Writes the report as one page that loads nothing from anywhere.

  Args:
    path: of the page.
    summary: see `summarize`; every text in it is escaped.
    clips: dicts of title, condition, seed, outcome_without, outcome_with and, as uint8[N, H, W, 3],
      frames_without and frames_with: the same seed without and with the memory.
  """
  template = _environment().get_template("report.html")
  page.write_text(
    path,
    template.render(
      summary=summary,
      headline=headline(summary),
      findings=findings(summary),
      facts=_facts(summary),
      origin=in_words(summary["provenance"]),
      charts={name: [page.chart(panel) for panel in make(summary)] for name, make in figures.CHARTS.items()},
      clips=[_clip(clip) for clip in clips],
      provenance_json=json.dumps(summary["provenance"], indent=2, ensure_ascii=False),
      methods=method_rows(summary),
      settings=list(dict.fromkeys(figures.place(cell) for cell in summary["cells"])),
    ),
  )


def _environment() -> jinja2.Environment:
  environment = page.environment(Path(__file__).parent / "templates")
  shown = (p_value, milliseconds, figures.policy_label, figures.place_label)
  environment.filters.update({function.__name__: function for function in shown})
  environment.globals.update(cell_label=figures.cell_label, stream_label=figures.stream_label,
                             memory_labels=figures.MEMORY_LABELS)
  return environment


def _facts(summary: Summary) -> dict[str, str]:
  """Returns the size and cost of the run, by name, for the top of the page."""
  cells, streams = summary["cells"], summary["streams"]
  facts = {
    "episodes evaluated": f"{sum(cell['n'] for cell in cells):,}",
    "episodes to learn from": f"{sum(stream['episodes'] for stream in streams):,}",
    "corrected by the expert": f"{sum(stream['corrected_episodes'] for stream in streams):,}",
    "memory records": f"{sum(stream['records'] for stream in streams):,}",
    "crashed episodes": f"{len(summary['crashes']):,}",
  }
  totals = [r for r in summary["latency"] if r["stage"] == "total" and r["policy"] == HEADLINE_POLICY]
  if totals:
    facts["per decision, p50"] = f"{milliseconds(totals[0]['p50'])} ms"
  return facts


def _clip(clip: Mapping[str, Any]) -> dict[str, Any]:
  words = {name: value for name, value in clip.items() if not name.startswith("frames")}
  return words | page.clip(clip["frames_without"], clip["frames_with"])
