"""Charts of a summary."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes

from pi0rag_jax.pages.panels import LIGHT, Panel, rows_height

POLICY_ORDER = ("base", "base_z0", "base_z0_4", "base_z0_8", "base_z0_16", "textbook", "memory")
POLICY_LABELS = {
  "base": "base (sampled)",
  "base_z0": "base (z=0)",
  "base_z0_4": "base (z=0), 4 actions",
  "base_z0_8": "base (z=0), 8 actions",
  "base_z0_16": "base (z=0), 16 actions",
  "textbook": "textbook blend",
  "memory": "memory",
  "better_control": "better control",
}
# Of `overall.MEMORIES`.
MEMORY_LABELS = {"own": "taught here", "pooled": "taught here and elsewhere", "held_out": "taught elsewhere alone"}
# By role.
COLOURS = {"base": LIGHT["grey"], "base_z0": LIGHT["blue"], "textbook": LIGHT["amber"], "memory": LIGHT["green"],
           "other1": LIGHT["purple"], "other2": LIGHT["red"]}
MARKERS = {"base": "o", "base_z0": "s", "textbook": "^", "memory": "D", "other1": "v", "other2": "P"}


def policy_rank(policy: str) -> tuple[int, str]:
  """Returns a sorting key: the known policies in their order, then others by name."""
  known = policy in POLICY_ORDER
  return (POLICY_ORDER.index(policy), "") if known else (len(POLICY_ORDER), policy)


def policy_label(policy: str) -> str:
  """Returns the name of a policy as it is shown to people."""
  return POLICY_LABELS.get(policy, policy)


def cell_label(cell: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> str:
  """Returns the policy's name, with what taught its memory where several memories of it ran in the same place."""
  same = [c for c in cells if (c["policy"], place(c)) == (cell["policy"], place(cell))]
  facts = []
  if len({c["stream"] for c in same}) > 1:
    facts.append(cell["stream"])
  if len({c["stream_episodes"] for c in same}) > 1:
    facts.append(f"{cell['stream_episodes']} episodes")
  label = policy_label(cell["policy"])
  return f"{label} ({', '.join(facts)})" if facts else label


def stream_label(stream: Mapping[str, Any], streams: Sequence[Mapping[str, Any]]) -> str:
  """Returns where a stream ran, with its identity where several ran in the same place."""
  alone = sum(place(other) == place(stream) for other in streams) == 1
  return place_label(stream) if alone else f"{place_label(stream)} ({stream['stream']})"


def place(row: Mapping[str, Any]) -> tuple[str, str]:
  """Returns the task and condition of a cell or a stream."""
  return row["task"], row["condition"]


def place_label(row: Mapping[str, Any]) -> str:
  """Returns 'task, condition' as it is shown to people."""
  return ", ".join(name for name in place(row) if name)


def _role(policy: str) -> str:
  """Returns the entry of COLOURS and MARKERS that a policy is drawn with; unknown ones share two by name."""
  if policy in COLOURS:
    return policy
  return ("other1", "other2")[sum(policy.encode()) % 2]


def success_panels(summary: Mapping[str, Any]) -> list[Panel]:
  """Returns one panel per task and condition: success rate and 95 % interval of every policy."""
  cells = summary["cells"]
  panels = []
  for where in dict.fromkeys(place(cell) for cell in cells):
    here = [cell for cell in cells if place(cell) == where and cell["n"]]
    if here:
      labels = [cell_label(cell, cells) for cell in here]
      title = place_label(here[0])
      alt = f"Success rates for {title}: " + "; ".join(map(_rate_words, labels, here)) + "."
      panels.append(Panel(title, alt, _success_drawing(here, labels), rows_height(len(here))))
  return panels


def _rate_words(label: str, row: Mapping[str, Any]) -> str:
  low, high = row["interval_95"]
  return f"{label} {100 * row['success_rate']:.1f} % (interval {100 * low:.1f} to {100 * high:.1f} %)"


def _success_drawing(cells, labels) -> Callable[[Axes], None]:
  def draw(axes: Axes) -> None:
    for row, cell in enumerate(cells):
      role = _role(cell["policy"])
      low, high = cell["interval_95"]
      axes.plot([100 * low, 100 * high], [row, row], color=COLOURS[role], linewidth=5, alpha=0.35)
      axes.plot(100 * cell["success_rate"], row, MARKERS[role], color=COLOURS[role], markersize=8)
      axes.text(106, row, f"{100 * cell['success_rate']:.1f} %", va="center", fontweight="bold")
    axes.set_yticks(range(len(cells)), labels)
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.set_xlim(0, 125)
    axes.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    axes.grid(axis="x")

  return draw


def learning_panels(summary: Mapping[str, Any]) -> list[Panel]:
  """Returns one panel per stream: success by block with its band, and the rate without the memory."""
  panels = []
  for stream in summary["streams"]:
    curve = [block for block in stream["learning_curve"] if block["n"]]
    if curve:
      reference = _without_memory(summary, stream)
      title = stream_label(stream, summary["streams"])
      words = [_rate_words(f"episodes {b['start'] + 1} to {b['stop']}", b) for b in curve]
      alt = f"Success while learning, {title}: " + "; ".join(words) + "."
      panels.append(Panel(title, alt, _learning_drawing(stream, curve, reference)))
  return panels


def _without_memory(summary, stream) -> Mapping[str, Any] | None:
  """Returns the evaluated cell of the policy without memory where the stream ran, z = 0 if there is one."""
  here = {c["policy"]: c for c in summary["cells"] if place(c) == place(stream) and c["n"]}
  return here.get("base_z0", here.get("base"))


def _learning_drawing(stream, curve, reference) -> Callable[[Axes], None]:
  def draw(axes: Axes) -> None:
    color = COLOURS[_role(stream["policy"])]
    middle = [(block["start"] + block["stop"]) / 2 for block in curve]
    low, high = (100 * np.array([block["interval_95"][i] for block in curve]) for i in (0, 1))
    axes.fill_between(middle, low, high, color=color, alpha=0.18, linewidth=0)
    rates = [100 * block["success_rate"] for block in curve]
    axes.plot(middle, rates, "D-", color=color, linewidth=2, markersize=5)
    stop = curve[-1]["stop"]
    if reference:
      height = 100 * reference["success_rate"]
      color = COLOURS[_role(reference["policy"])]
      label = f"{policy_label(reference['policy'])}, evaluated: {height:.1f} %"
      axes.axhline(height, color=color, linestyle=(0, (4, 3)), linewidth=1.5, label=label)
      axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=8, borderaxespad=0.1)
    axes.set_xlim(0, stop)
    axes.set_ylim(0, 103)
    axes.set_yticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    axes.set_xlabel("episodes in the stream")
    axes.grid(axis="y")

  return draw


def frozen_panels(summary: Mapping[str, Any]) -> list[Panel]:
  """Returns one panel per task: success on unseen seeds of the memory frozen after so many episodes, by condition."""
  panels = []
  cells = [c for c in summary["cells"] if c["n"] and not c["came_from"]]
  for task in dict.fromkeys(cell["task"] for cell in cells):
    curves = {}
    for stream in dict.fromkeys(c["stream"] for c in cells if c["task"] == task and c["policy"] == "memory"):
      curve = [c for c in cells if (c["stream"], c["policy"]) == (stream, "memory")]
      start = [c for c in cells if (c["policy"], place(c)) == ("base_z0", place(curve[0]))]
      curves[stream] = sorted([*start, *curve], key=lambda c: c["stream_episodes"])
    if any(len({c["stream_episodes"] for c in curve}) > 2 for curve in curves.values()):
      words = [f"{stream}: " + ", ".join(f"{100 * c['success_rate']:.0f} % after {c['stream_episodes']}" for c in curve)
               for stream, curve in curves.items()]
      panels.append(Panel(task, f"Success of the frozen memory, {task}: {'; '.join(words)}.", _frozen_drawing(curves)))
  return panels


def _frozen_drawing(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Callable[[Axes], None]:
  def draw(axes: Axes) -> None:
    styles = {condition: role for condition, role in zip(
      dict.fromkeys(curve[-1]["condition"] for curve in curves.values()),
      ("memory", "base_z0", "textbook", "other1", "other2", "base") * len(curves))}
    labelled = set()
    for curve in curves.values():
      condition = curve[-1]["condition"]
      role = styles[condition]
      axes.plot([c["stream_episodes"] for c in curve], [100 * c["success_rate"] for c in curve],
                MARKERS[role] + "-", color=COLOURS[role], linewidth=1.5, markersize=5,
                label=None if condition in labelled else condition)
      labelled.add(condition)
    axes.set_xscale("symlog", linthresh=50)
    ticks = sorted({c["stream_episodes"] for curve in curves.values() for c in curve})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 103)
    axes.set_yticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    axes.set_xlabel("episodes that the memory learned from")
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    axes.grid(axis="y")

  return draw


def latency_panels(summary: Mapping[str, Any]) -> list[Panel]:
  """Returns one panel per policy: p50 (marker), p95 (end of the bar) and p99 (tick) of every stage."""
  panels = []
  for policy in dict.fromkeys(row["policy"] for row in summary["latency"]):
    rows = [row for row in summary["latency"] if row["policy"] == policy]
    words = [f"{r['stage']} {r['p50']:.2g}, {r['p95']:.2g} and {r['p99']:.2g}" for r in rows]
    label = policy_label(policy)
    alt = f"Milliseconds per decision of {label}, p50, p95 and p99: " + "; ".join(words) + "."
    panels.append(Panel(label, alt, _latency_drawing(rows, _limits(summary)), rows_height(len(rows))))
  return panels


def _limits(summary) -> tuple[float, float]:
  """Returns the range of all latencies, widened a little; a logarithmic axis has no zero."""
  values = [row[p] for row in summary["latency"] for p in ("p50", "p99") if row[p]]
  return (min(values) / 1.6, max(values) * 1.6) if values else (0.1, 10.0)


def _latency_drawing(rows, limits) -> Callable[[Axes], None]:
  def draw(axes: Axes) -> None:
    for height, row in enumerate(rows):
      role = _role(row["policy"])
      axes.plot([row["p50"], row["p95"]], [height, height], color=COLOURS[role], linewidth=5, alpha=0.35)
      axes.plot(row["p99"], height, "|", color=COLOURS[role], markersize=11, markeredgewidth=2)
      axes.plot(row["p50"], height, MARKERS[role], color=COLOURS[role], markersize=7)
    axes.set_yticks(range(len(rows)), [row["stage"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.set_xlabel("milliseconds per decision (logarithmic)")
    axes.grid(axis="x")

  return draw


CHARTS = {"success": success_panels, "frozen": frozen_panels, "learning_curve": learning_panels,
          "latency": latency_panels}
