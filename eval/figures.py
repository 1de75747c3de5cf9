"""Charts of a summary (SVG for the page, PNG beside it) and short animated clips, as bytes and data URIs.

An SVG carries its own light and dark colours: after drawing, each colour of LIGHT becomes a CSS variable.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from pi0rag_jax.errors import Pi0RagError

POLICY_ORDER = ("base", "base_z0", "textbook", "memory")
POLICY_LABELS = {
  "base": "base (sampled)",
  "base_z0": "base (z=0)",
  "textbook": "textbook blend",
  "memory": "memory",
}
# By role and theme; the policies' hues also differ in lightness, for colour-blind readers and grey printing.
LIGHT = {
  "ink": "#1d2a33",
  "muted": "#5b6872",
  "line": "#dde2e5",
  "base": "#8b97a1",
  "base_z0": "#3f689c",
  "textbook": "#b3741a",
  "memory": "#0b7a6b",
  "other1": "#8a4b8c",
  "other2": "#a3452f",
}
DARK = {
  "ink": "#e7ecef",
  "muted": "#9fabb5",
  "line": "#37424b",
  "base": "#98a4ae",
  "base_z0": "#8db2e2",
  "textbook": "#e2b25c",
  "memory": "#52c7b4",
  "other1": "#cf98d1",
  "other2": "#e69a85",
}
MARKERS = {"base": "o", "base_z0": "s", "textbook": "^", "memory": "D", "other1": "v", "other2": "P"}
PANEL_INCHES = (4.0, 2.5)  # 384 CSS pixels wide: legible enlarged in two columns and reduced on a phone.
CLIP_FPS = 10
CLIP_BYTES = 300_000
CLIP_PANE_PX = 192  # Target width of one side, reached by whole-number enlargement.
CLIP_GAP_PX = 8

_STYLE: dict[Any, Any] = {
  "font.size": 9,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.spines.left": False,
  "axes.edgecolor": LIGHT["line"],
  "axes.labelcolor": LIGHT["muted"],
  "axes.axisbelow": True,
  "grid.color": LIGHT["line"],
  "text.color": LIGHT["ink"],
  "text.parse_math": False,  # A '$' in a name is a dollar.
  "xtick.color": LIGHT["line"],
  "xtick.labelcolor": LIGHT["muted"],
  "ytick.color": LIGHT["line"],
  "ytick.labelcolor": LIGHT["ink"],
  "ytick.major.size": 0,
  "lines.solid_capstyle": "butt",  # A bar ends where its interval does.
  "svg.fonttype": "none",
  "svg.hashsalt": "pi0rag",
}


@dataclass(frozen=True)
class Panel:
  """One chart: what draws it, and the same in words for those who cannot see it."""

  title: str
  alt: str
  draw: Callable[[Axes], None]
  height_inches: float = PANEL_INCHES[1]


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
  """Returns the entry of LIGHT and MARKERS that a policy is drawn with; unknown ones share two by name."""
  if policy in POLICY_ORDER:
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
      panels.append(Panel(title, alt, _success_drawing(here, labels), _rows_height(len(here))))
  return panels


def _rate_words(label: str, row: Mapping[str, Any]) -> str:
  low, high = row["interval_95"]
  return f"{label} {100 * row['success_rate']:.1f} % (interval {100 * low:.1f} to {100 * high:.1f} %)"


def _success_drawing(cells, labels) -> Callable[[Axes], None]:
  def draw(axes: Axes) -> None:
    for row, cell in enumerate(cells):
      role = _role(cell["policy"])
      low, high = cell["interval_95"]
      axes.plot([100 * low, 100 * high], [row, row], color=LIGHT[role], linewidth=5, alpha=0.35)
      axes.plot(100 * cell["success_rate"], row, MARKERS[role], color=LIGHT[role], markersize=8)
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
    color = LIGHT[_role(stream["policy"])]
    middle = [(block["start"] + block["stop"]) / 2 for block in curve]
    low, high = (100 * np.array([block["interval_95"][i] for block in curve]) for i in (0, 1))
    axes.fill_between(middle, low, high, color=color, alpha=0.18, linewidth=0)
    rates = [100 * block["success_rate"] for block in curve]
    axes.plot(middle, rates, "D-", color=color, linewidth=2, markersize=5)
    stop = curve[-1]["stop"]
    if reference:
      height = 100 * reference["success_rate"]
      color = LIGHT[_role(reference["policy"])]
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
  cells = [c for c in summary["cells"] if c["n"] and "<" not in c["stream"]]
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
                MARKERS[role] + "-", color=LIGHT[role], linewidth=1.5, markersize=5,
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
    panels.append(Panel(label, alt, _latency_drawing(rows, _limits(summary)), _rows_height(len(rows))))
  return panels


def _limits(summary) -> tuple[float, float]:
  """Returns the range of all latencies, widened a little; a logarithmic axis has no zero."""
  values = [row[p] for row in summary["latency"] for p in ("p50", "p99") if row[p]]
  return (min(values) / 1.6, max(values) * 1.6) if values else (0.1, 10.0)


def _latency_drawing(rows, limits) -> Callable[[Axes], None]:
  def draw(axes: Axes) -> None:
    for height, row in enumerate(rows):
      role = _role(row["policy"])
      axes.plot([row["p50"], row["p95"]], [height, height], color=LIGHT[role], linewidth=5, alpha=0.35)
      axes.plot(row["p99"], height, "|", color=LIGHT[role], markersize=11, markeredgewidth=2)
      axes.plot(row["p50"], height, MARKERS[role], color=LIGHT[role], markersize=7)
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


def write_pngs(folder: Path, summary: Mapping[str, Any]) -> list[Path]:
  """Writes a PNG per chart and returns those that have something to show."""
  written = []
  for name, make in CHARTS.items():
    panels = make(summary)
    if panels:
      written.append(folder / f"{name}.png")
      written[-1].write_bytes(png(panels))
  return written


def png(panels: Sequence[Panel]) -> bytes:
  """Returns one picture of all panels, two to a row, on white."""
  columns = min(len(panels), 2)
  rows = -(-len(panels) // columns)
  height = max(panel.height_inches for panel in panels)
  with matplotlib.rc_context(_STYLE):
    layout = ConstrainedLayoutEngine(wspace=0.06, hspace=0.06)
    figure = Figure(figsize=(PANEL_INCHES[0] * columns, (height + 0.3) * rows), layout=layout)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels):
      panel.draw(axes)
      above_legend = 20 if axes.get_legend() else 6
      axes.set_title(panel.title, loc="left", fontsize=10.5, fontweight="bold", pad=above_legend)
    for axes in grid[len(panels) :]:
      axes.set_axis_off()
    return _saved(figure, format="png", dpi=160, facecolor="white")


def svg(panel: Panel) -> str:
  """Returns the panel as an SVG that follows the reader's light or dark setting, without its title."""
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(PANEL_INCHES[0], panel.height_inches), layout="constrained")
    panel.draw(figure.subplots())
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    text = _saved(figure, format="svg", transparent=True, metadata=nothing).decode()
  for name, color in LIGHT.items():
    text = text.replace(color, f"var(--{name})")
  start = text.index(">", text.index("<svg")) + 1
  return text[:start] + _theme_style() + text[start:]


def _theme_style() -> str:
  light, dark = (";".join(f"--{name}:{c}" for name, c in theme.items()) for theme in (LIGHT, DARK))
  font = "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif!important}"
  return f"<style>:root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{font}</style>"


def _rows_height(rows: int) -> float:
  """Returns the height in inches of a panel with one line per row and an axis below."""
  return 0.7 + 0.32 * rows


def _saved(figure: Figure, **options) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, **options)
  return buffer.getvalue()


def data_uri(content: bytes, kind: str) -> str:
  """Returns the content as a data URI of MIME type `kind`."""
  return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def clip_webp(frames_without, frames_with, *, limit_bytes: int = CLIP_BYTES) -> bytes:
  """Returns one looping animation, without the memory on the left and with it on the right, of about CLIP_FPS.

  Both sides start together; the shorter one holds its last frame. Frames are left out until it fits.

  Args:
    frames_without: uint8[N, H, W, 3].
    frames_with: uint8[N, H, W, 3], N may differ.
    limit_bytes: size that the result keeps to, unless three frames are already more.
  """
  images = _side_by_side(np.asarray(frames_without), np.asarray(frames_with))
  stride = 1
  content = _animation(images, stride)
  while len(content) > limit_bytes and len(images) > 3 * stride:
    stride += 1
    content = _animation(images, stride)
  return content


def clip_still(frames_without, frames_with) -> bytes:
  """Returns the last frames of both sides as a WebP picture, for readers who want no motion."""
  buffer = io.BytesIO()
  _side_by_side(np.asarray(frames_without)[-1:], np.asarray(frames_with)[-1:])[0].save(buffer, "WEBP")
  return buffer.getvalue()


def _side_by_side(left_NHWC: np.ndarray, right_NHWC: np.ndarray) -> list[Image.Image]:
  """Returns one picture per frame: both sides enlarged by a whole factor, with a gap between them."""
  if left_NHWC.shape[1:] != right_NHWC.shape[1:] or not (len(left_NHWC) and len(right_NHWC)):
    shapes = f"{left_NHWC.shape} and {right_NHWC.shape}"
    raise Pi0RagError(f"clip frames have the shapes {shapes}: both sides need frames of one size")
  height, width = left_NHWC.shape[1:3]
  scale = max(1, CLIP_PANE_PX // width)
  pane = (width * scale, height * scale)
  images = []
  for step in range(max(len(left_NHWC), len(right_NHWC))):
    image = Image.new("RGBA", (2 * pane[0] + CLIP_GAP_PX, pane[1]))
    for frames, start in ((left_NHWC, 0), (right_NHWC, pane[0] + CLIP_GAP_PX)):
      frame = Image.fromarray(frames[min(step, len(frames) - 1)])
      image.paste(frame.resize(pane, Image.Resampling.NEAREST), (start, 0))
    images.append(image)
  return images


def _animation(images: Sequence[Image.Image], stride: int) -> bytes:
  """Returns every `stride`-th picture as an animated WebP of unchanged speed that rests on the last one."""
  kept = [*images[:-1:stride], images[-1]]
  durations_ms = [1000 * stride // CLIP_FPS] * (len(kept) - 1) + [1500]
  buffer = io.BytesIO()
  kept[0].save(
    buffer, "WEBP", save_all=True, append_images=kept[1:], duration=durations_ms, loop=0, quality=70, method=4
  )
  return buffer.getvalue()
