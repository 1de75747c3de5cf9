"""What the page of a policy's flow shows: its charts, and what they say in words."""

from collections.abc import Callable, Mapping, Sequence
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


def sections(policy: Policy, found: Sequence[Seen], rows: Sequence[Mapping[str, Any]]) -> list[Section]:
  """Returns the page's parts; pictures are of the moment where draws differ most."""
  of_moments = [row for row in rows if row["measure"] == "moment"]
  widest = found[int(np.argmax([row["spread"] for row in of_moments]))]
  made = [
    Section("draws", "How many ways it knows",
            f"{len(widest.draws_BTA)} draws of noise at one moment ({widest.moment.name}, where they differ most). "
            "'Split' is how much of the variance along the first component is between two groups: 0.64 for a normal "
            "distribution, 0.75 for a uniform one, 1 for two points; 'number that splits most' says the same of single "
            "numbers of the chunk, such as a gripper that is open or shut at some tick.",
            [_component_panel(policy, widest),
             *_time_panels(policy, widest, _shown(widest), widest.moment.name)], _moments_table(of_moments)),
    Section("steps", "Its chunk by step",
            "From z = 0: the chunk that each step foresees, x - t v. The first is what a single step would make, the "
            "mean of all that the policy might do; later steps choose.",
            _time_panels(policy, widest, _foreseen(widest), widest.moment.name)),
    Section("errors", "Error by number of steps",
            "How far a chunk is from that of the most steps, from the same noise; the dotted line is how far draws are "
            "from each other's mean. Means over all moments.", [_error_panel(rows)]),
  ]
  if "moved" in of_moments[0]:
    moved = found[int(np.argmax([row["moved"] for row in of_moments]))]
    made.append(Section(
      "memory", "Where the memory moves it",
      "How far the memory's chunk is from the policy's own at each moment, beside how far draws are from their mean: a "
      "memory that moves more than that asks for what no draw would do. Beside it the moment where it moves most.",
      [_memory_panel(of_moments), *_time_panels(policy, moved, _shown(moved), moved.moment.name)]))
  return made


def headline(policy: Policy, rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns what came out, in one sentence."""
  moments = [row for row in rows if row["measure"] == "moment"]
  spread, split = (float(np.mean([row[name] for row in moments])) for name in ("spread", "split_share"))
  own = [row for row in rows if row["measure"] == "error" and row["steps"] <= policy.spec.denoising_steps]
  error = max(own, key=lambda row: row["steps"]) if own else None
  told = f"; {error['steps']} steps are {error['error']:.2g} off" if error else ""
  return f"{policy.spec.name}: draws are {spread:.2g} from their mean (1 is about 1 cm), split {split:.2f}{told}."


def _component_panel(policy: Policy, seen: Seen) -> Panel:
  draws_BF = chunks.flat(seen.draws_BTA, policy)
  points_BC, take = chunks.project(draws_BF)

  def draw(axes: Axes) -> None:
    axes.plot(*points_BC.T, "o", color=LIGHT["blue"], markersize=4, alpha=0.6, markeredgewidth=0, label="draws")
    for name, chunk_TA, marker, colour in _marked(seen):
      axes.plot(*take(chunks.flat(chunk_TA, policy)), marker, color=colour, markersize=7, label=name)
    axes.set_xlabel("first component")
    axes.set_ylabel("second component")
    axes.legend(frameon=False, fontsize=7)
    axes.grid()

  return Panel(f"Draws, {seen.moment.name}", f"{len(points_BC)} chunks along two principal components of their paths.",
               draw, _SQUARE_INCHES)


def _shown(seen: Seen) -> dict[str, tuple[np.ndarray, str]]:
  return {name: (chunk_TA, colour) for name, chunk_TA, _, colour in _marked(seen) if name != "mean"}


def _marked(seen: Seen) -> list[tuple[str, np.ndarray, str, str]]:
  """Returns (name, chunk, marker, colour) of the chunks that pictures single out."""
  marked = [("mean", seen.draws_BTA.mean(axis=0), "P", LIGHT["grey"]), ("z = 0", seen.zero_TA, "s", LIGHT["ink"]),
            ("one step", seen.foreseen_NTA[0], "^", LIGHT["amber"])]
  if seen.steered_TA is not None:
    marked.append(("with the memory", seen.steered_TA, "D", LIGHT["green"]))
  return marked


def _time_panels(policy: Policy, seen: Seen, chunks_shown: Mapping[str, tuple[np.ndarray, str]], title: str
                 ) -> list[Panel]:
  """Returns a panel for each of the two entries of the action whose paths differ most, with its course in a chunk."""
  path_BTA = np.asarray(paths.to_path(np.asarray(seen.draws_BTA), policy.space))
  scaled_BTA = np.asarray(paths.scaled(path_BTA, policy.space))
  entries = sorted(np.argsort(-scaled_BTA.var(axis=0).sum(axis=0))[:2].tolist())

  def drawing(entry: int) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
      ticks = range(1, path_BTA.shape[1] + 1)
      for path_TA in path_BTA:
        axes.plot(ticks, path_TA[:, entry], color=LIGHT["blue"], linewidth=0.6, alpha=0.35)
      for name, (chunk_TA, colour) in chunks_shown.items():
        course_T = np.asarray(paths.to_path(np.asarray(chunk_TA), policy.space))[:, entry]
        axes.plot(ticks, course_T, ".-", color=colour, linewidth=1.6, markersize=4, label=name)
      axes.set_xlabel("tick of the chunk")
      axes.legend(frameon=False, fontsize=7, loc="lower left", ncols=4, bbox_to_anchor=(0, 1), borderaxespad=0.1)
      axes.grid(axis="y")

    return draw

  words = "summed up, " if any(policy.space.integrates) else ""
  alt = f"over the ticks of {len(path_BTA)} draws at {seen.moment.name}, with {', '.join(chunks_shown)}"
  return [Panel(f"{title}, entry {entry}", f"Entry {entry} of the action, {words}{alt}.", drawing(entry))
          for entry in entries]


def _foreseen(seen: Seen) -> dict[str, tuple[np.ndarray, str]]:
  count = len(seen.foreseen_NTA)
  colours = (LIGHT["red"], LIGHT["amber"], LIGHT["purple"], LIGHT["green"])
  return {f"step {step}": (seen.foreseen_NTA[step - 1], colour)
          for step, colour in zip(sorted({min(step, count) for step in (1, 2, 5, count)}), colours)}


def _error_panel(rows: Sequence[Mapping[str, Any]]) -> Panel:
  errors = [row for row in rows if row["measure"] == "error" and row["error"] > 0]
  spread = float(np.mean([row["spread"] for row in rows if row["measure"] == "moment"]))

  def draw(axes: Axes) -> None:
    counts = [row["steps"] for row in errors]
    axes.plot(counts, [row["error"] for row in errors], "o-", color=LIGHT["green"])
    axes.axhline(spread, color=LIGHT["grey"], linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(counts, list(map(str, counts)))
    axes.minorticks_off()
    axes.set_xlabel("steps")
    axes.grid(axis="y")

  most = max(row["steps"] for row in rows if row["measure"] == "error")
  return Panel(f"Distance to the chunk of {most} steps", "; ".join(
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
  columns = {"spread": "draws, from their mean", "split_share": "split", "entry_split": "number that splits most",
             "zero_from_mean": "z = 0, from the mean",
             "zero_to_nearest": "z = 0, to the nearest draw",
             "nearest_p50": "a draw, to the nearest other", "one_step_from_mean": "one step, from the mean",
             "detour": "detour of the flow", "moved": "moved by the memory", "used": "records"}
  return [{"moment": row["moment"], **{text: f"{row[name]:.3g}" for name, text in columns.items() if name in row}}
          for row in moments]
