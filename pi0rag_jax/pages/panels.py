"""Charts: drawn once, as SVG for a page and as PNG beside it.

An SVG carries its own light and dark colours: after drawing, each colour of LIGHT becomes a CSS variable.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# By use and theme; the hues also differ in lightness, for colour-blind readers and grey printing.
LIGHT = {
  "ink": "#1d2a33",
  "muted": "#5b6872",
  "line": "#dde2e5",
  "grey": "#8b97a1",
  "blue": "#3f689c",
  "amber": "#b3741a",
  "green": "#0b7a6b",
  "purple": "#8a4b8c",
  "red": "#a3452f",
}
DARK = {
  "ink": "#e7ecef",
  "muted": "#9fabb5",
  "line": "#37424b",
  "grey": "#98a4ae",
  "blue": "#8db2e2",
  "amber": "#e2b25c",
  "green": "#52c7b4",
  "purple": "#cf98d1",
  "red": "#e69a85",
}
PANEL_INCHES = (4.0, 2.5)  # 384 CSS pixels wide: legible enlarged in two columns and reduced on a phone.

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
  draw: Callable[[Axes], object]
  height_inches: float = PANEL_INCHES[1]


# What makes the panels of one chart of a summary, by the chart's name.
Charts = Mapping[str, Callable[[Any], Sequence[Panel]]]


def write_pngs(folder: Path, summary: Any, charts: Charts) -> list[Path]:
  """Writes a PNG per chart and returns those that have something to show."""
  written = []
  for name, make in charts.items():
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
      size = 10.5 if len(panel.title) < 28 else 8.5  # beside an axis' wide labels little is left for a title
      axes.set_title(panel.title, loc="left", fontsize=size, fontweight="bold", pad=above_legend)
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


def rows_height(rows: int) -> float:
  """Returns the height in inches of a panel with one line per row and an axis below."""
  return 0.7 + 0.32 * rows


def _saved(figure: Figure, **options) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, **options)
  return buffer.getvalue()
