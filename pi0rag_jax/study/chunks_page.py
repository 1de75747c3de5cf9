"""What the page of a policy's flow shows: its charts, and what they say in words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pi0rag_jax.pages.panels import LIGHT, Panel
from pi0rag_jax.policy.policy import Policy
from pi0rag_jax.steering import paths
from pi0rag_jax.study import chunks
from pi0rag_jax.study.chunks import Seen
from pi0rag_jax.study.report import Section

_SQUARE_INCHES = 3.4
_NORMAL_SPLIT = 2 / np.pi


def sections(policy: Policy, found: Sequence[Seen], rows: Sequence[Mapping[str, Any]]) -> list[Section]:
  """Returns the page's parts; pictures are of the moment where draws differ most."""
  of_moments = [row for row in rows if row["measure"] == "moment"]
  widest = found[int(np.argmax([row["spread"] for row in of_moments]))]
  entries = _entries(policy, widest)
  made = [
    Section("draws", "How many ways it knows",
            f"{len(widest.draws_BTA)} draws of noise at one moment ({widest.moment.name}, where they differ most). "
            "`split` is how much of the variance along the first component is between two groups: 0.64 for a normal "
            "distribution, 1 for two points. Where it is near 0.64 the policy knows one way, more or less exactly.",
            [_component_panel(policy, widest), _path_panel(policy, widest, entries)], _moments_table(of_moments)),
    Section("steps", "Its chunk by step",
            "From z = 0: the chunk that each step foresees, x - t v. The first is what a single step would make, the "
            "mean of all that the policy might do; later steps choose.", [_foreseen_panel(policy, widest, entries)]),
    Section("errors", "Error by number of steps",
            "How far a chunk is from that of the most steps, from the same noise; the dotted line is how far draws are "
            "from each other's mean. Means over all moments.", [_error_panel(rows)]),
  ]
  if widest.steered_TA is not None:
    made.append(Section(
      "memory", "Where the memory moves it",
      "How far the memory's chunk is from the policy's own at each moment, beside how far draws are from their mean: a "
      "memory that moves more than that asks for what no draw would do.", [_memory_panel(of_moments)]))
  return made


def headline(policy: Policy, rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns what came out, in one sentence."""
  moments = [row for row in rows if row["measure"] == "moment"]
  spread, split = (float(np.mean([row[name] for row in moments])) for name in ("spread", "split_share"))
  own = [row for row in rows if row["measure"] == "error" and row["steps"] <= policy.spec.denoising_steps]
  error = max(own, key=lambda row: row["steps"]) if own else None
  told = f"; {error['steps']} steps are {error['error']:.2g} off" if error else ""
  return f"{policy.spec.name}: draws are {spread:.2g} from their mean (1 is about 1 cm), split {split:.2f}{told}."


def _entries(policy: Policy, seen: Seen) -> tuple[int, int]:
  """Returns the two entries of the action whose paths cost most, in the order of the action."""
  path_BTA = paths.scaled(paths.to_path(np.asarray(seen.draws_BTA, np.float64), policy.space), policy.space)
  size_A = np.square(path_BTA).sum(axis=(0, 1))
  first, second = sorted(np.argsort(-size_A)[:2].tolist()) if len(size_A) > 1 else (0, 0)
  return first, second


def _component_panel(policy: Policy, seen: Seen) -> Panel:
  draws_BF = chunks.flat(seen.draws_BTA, policy)
  points_BC, take = chunks.project(draws_BF)

  def draw(axes: Axes) -> None:
    axes.plot(*points_BC.T, "o", color=LIGHT["blue"], markersize=4, alpha=0.6, markeredgewidth=0, label="draws")
    for name, chunk_TA, marker, colour in _marked(seen):
      axes.plot(*take(chunks.flat(chunk_TA, policy)), marker, color=colour, markersize=7, label=name)
    axes.set_xlabel("first component")
    axes.set_ylabel("second component")
    axes.legend(frameon=False, fontsize=7, loc="lower left", ncols=5, bbox_to_anchor=(0, 1), borderaxespad=0.1)
    axes.grid()

  return Panel(f"Draws, {seen.moment.name}", f"{len(points_BC)} chunks along two principal components of their paths.",
               draw, _SQUARE_INCHES)


def _marked(seen: Seen) -> list[tuple[str, np.ndarray, str, str]]:
  """Returns (name, chunk, marker, colour) of the chunks that pictures single out."""
  marked = [("mean", seen.draws_BTA.mean(axis=0), "P", LIGHT["grey"]), ("z = 0", seen.zero_TA, "s", LIGHT["ink"]),
            ("one step", seen.foreseen_NTA[0], "^", LIGHT["amber"])]
  if seen.steered_TA is not None:
    marked.append(("with the memory", seen.steered_TA, "D", LIGHT["green"]))
  return marked


def _path_panel(policy: Policy, seen: Seen, entries: tuple[int, int]) -> Panel:
  def draw(axes: Axes) -> None:
    for chunk_TA in seen.draws_BTA:
      axes.plot(*_line(chunk_TA, policy, entries), color=LIGHT["blue"], linewidth=0.6, alpha=0.4)
    for name, chunk_TA, marker, colour in _marked(seen)[1:]:
      axes.plot(*_line(chunk_TA, policy, entries), marker + "-", color=colour, linewidth=1.5, markersize=3, label=name)
    _named(axes, entries)

  return Panel("Their paths", f"Paths of the chunks in entries {entries[0]} and {entries[1]} of the action.", draw,
               _SQUARE_INCHES)


def _foreseen_panel(policy: Policy, seen: Seen, entries: tuple[int, int]) -> Panel:
  count = len(seen.foreseen_NTA)
  shown = sorted({min(step, count) for step in (1, 2, 5, count)})
  colours = (LIGHT["red"], LIGHT["amber"], LIGHT["purple"], LIGHT["green"])

  def draw(axes: Axes) -> None:
    for step, colour in zip(shown, colours):
      axes.plot(*_line(seen.foreseen_NTA[step - 1], policy, entries), ".-", color=colour, linewidth=1.3,
                label=f"step {step}")
    _named(axes, entries)

  return Panel(f"Foreseen from z = 0, {seen.moment.name}", "Paths of the chunks foreseen at steps "
               f"{', '.join(map(str, shown))} of {count}.", draw, _SQUARE_INCHES)


def _line(chunk_TA, policy: Policy, entries: tuple[int, int]) -> np.ndarray:
  """Returns a chunk's path in two entries, [2, T] or from where it starts [2, T + 1]."""
  path_TA = paths.to_path(np.asarray(chunk_TA), policy.space)[:, list(entries)]
  integrates = all(policy.space.integrates[entry] for entry in entries)
  return (np.concatenate([np.zeros((1, 2)), path_TA]) if integrates else path_TA).T


def _named(axes: Axes, entries: tuple[int, int]) -> None:
  axes.set_xlabel(f"entry {entries[0]} of the action")
  axes.set_ylabel(f"entry {entries[1]}")
  axes.legend(frameon=False, fontsize=7, loc="lower left", ncols=4, bbox_to_anchor=(0, 1), borderaxespad=0.1)
  axes.grid()


def _error_panel(rows: Sequence[Mapping[str, Any]]) -> Panel:
  errors = [row for row in rows if row["measure"] == "error" and row["error"] > 0]
  spread = np.mean([row["spread"] for row in rows if row["measure"] == "moment"])

  def draw(axes: Axes) -> None:
    counts = [row["steps"] for row in errors]
    axes.plot(counts, [row["error"] for row in errors], "o-", color=LIGHT["green"])
    axes.axhline(spread, color=LIGHT["grey"], linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(counts, list(map(str, counts)))
    axes.minorticks_off()
    axes.set_xlabel("steps")
    axes.grid(axis="y")

  return Panel("Distance to the chunk of the most steps", "; ".join(
    f"{row['steps']} steps: {row['error']:.3g}" for row in errors) + f"; draws are {spread:.3g} from their mean", draw)


def _memory_panel(moments: Sequence[Mapping[str, Any]]) -> Panel:
  def draw(axes: Axes) -> None:
    places = range(len(moments))
    axes.plot(places, [row["spread"] for row in moments], "o-", color=LIGHT["blue"], label="draws, from their mean")
    axes.plot(places, [row["moved"] for row in moments], "D-", color=LIGHT["green"], label="moved by the memory")
    axes.set_xticks(places, [row["moment"].removeprefix("tick ").removeprefix("frame ") for row in moments])
    axes.set_xlabel("tick or frame")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(axis="y")

  return Panel("Moved, and drawn (about cm)", "; ".join(
    f"{row['moment']}: moved by {row['moved']:.2f}, {row['used']} records" for row in moments), draw)


def _moments_table(moments: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
  columns = {"spread": "draws, from their mean", "split_share": "split", "zero_from_mean": "z = 0, from the mean",
             "zero_to_nearest": "z = 0, to the nearest draw", "one_step_from_mean": "one step, from the mean",
             "detour": "detour of the flow", "moved": "moved by the memory", "used": "records"}
  return [{"moment": row["moment"], **{text: f"{row[name]:.3g}" for name, text in columns.items() if name in row}}
          for row in moments]
