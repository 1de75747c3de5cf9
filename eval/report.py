"""From a summary to what people read: a terminal table, one self-contained HTML page."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from eval import figures, overall
from eval.provenance import in_words
from eval.summary import CONTROLS, HEADLINE_POLICY, Summary, write_summary
from pi0rag_jax import anytime
from pi0rag_jax.pages import page, panels
from pi0rag_jax.pages.page import interval, percent
from pi0rag_jax.statistics import (
  verdict,
)


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
