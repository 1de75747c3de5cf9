"""One self-contained page of a curation: what was kept and why, and the best and worst demonstrations to look at."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax import files
from pi0rag_jax.curation import figures
from pi0rag_jax.curation.figures import Embedded, Scored
from pi0rag_jax.curation.selection import Selection
from pi0rag_jax.data.dataset import Dataset
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.pages import page, panels

CLIPS = 3  # of the best, and as many of the worst demonstrations
CLIP_FRAMES = 60
FILE_NAME = "report.html"


@dataclasses.dataclass(frozen=True)
class Curation:
  """All that the page shows; what is empty is left out."""

  selections: Sequence[Selection]
  demonstrations: Sequence[Scored]  # one per selection
  rollouts: Sequence[Scored] = ()
  embeddings: Sequence[Embedded] = ()
  # Rows of the table of results, all with the same columns: texts, and numbers as they are to be read.
  results: Sequence[Mapping[str, Any]] = ()
  facts: Mapping[str, str] = dataclasses.field(default_factory=dict)  # for the top of the page, beside what was kept
  clips: Sequence[Mapping[str, Any]] = ()  # as `demonstration_clips` returns them


def _scored(make: Callable[[Sequence[Scored]], list]) -> Callable[[Curation], list]:
  return lambda curation: make([*curation.demonstrations, *curation.rollouts])


CHARTS: panels.Charts = {
  "scores": _scored(figures.score_panels),
  "roc": _scored(figures.roc_panels),
  "calibration": lambda curation: figures.calibration_panels(curation.rollouts),
  "lengths": _scored(figures.length_panels),
  "embeddings": lambda curation: figures.projection_panels(curation.embeddings),
}


def write_report(folder: str | os.PathLike, curation: Curation) -> Path:
  """Returns the page `report.html` in `folder`, written with the charts as PNG beside it."""
  if not curation.selections or len(curation.selections) != len(curation.demonstrations):
    raise Pi0RagError(f"a report of {len(curation.selections)} selections and {len(curation.demonstrations)} scored "
                      "data sets: one of each per data set is wanted, and one at least")
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  panels.write_pngs(folder, curation, CHARTS)
  template = page.environment(Path(__file__).parent / "templates").get_template("curation.html")
  files.write_text(folder / FILE_NAME, template.render(
    headline=headline(curation.selections),
    facts=_facts(curation),
    charts={name: [page.chart(panel) for panel in make(curation)] for name, make in CHARTS.items()},
    results=curation.results,
    columns=list(curation.results[0]) if curation.results else [],
    clips=[_clip(clip) for clip in curation.clips],
    selections=curation.selections,
  ))
  return folder / FILE_NAME


def headline(selections: Sequence[Selection]) -> str:
  """Returns what was kept, in one sentence."""
  kept, total = (sum(map(int, counts)) for counts in zip(*((s.kept_J.sum(), len(s.kept_J)) for s in selections)))
  where = f" of {len(selections)} data sets" if len(selections) > 1 else ""
  return f"{kept} of {total} demonstrations{where} are kept, {100 * kept / total:.0f} %."


def demonstration_clips(
  dataset: Dataset, scored: Scored, kept_J: np.ndarray, *, count: int = CLIPS, camera: str | None = None,
  notes: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
  """Returns films of the demonstrations with the best scores and of those with the worst.

  Args:
    dataset: of J demonstrations.
    scored: the same, with their scores.
    kept_J: bool[J].
    count: of each kind, fewer where there are not enough.
    camera: its name in the data set; None is the first.
    notes: what is known of every demonstration, such as its flaw.
  """
  if not dataset.cameras:
    raise Pi0RagError(f"'{dataset.path}' has no pictures to show: leave the films out")
  order = [episode for episode in np.argsort(-scored.scores_J, kind="stable").tolist()
           if np.isfinite(scored.scores_J[episode])]
  count = min(count, len(order) // 2)
  found = []
  for kind, episodes in (("best", order[:count]), ("worst", order[::-1][:count])):
    for episode in episodes:
      length = dataset.episode_length(episode)
      shown = np.unique(np.linspace(0, length - 1, min(length, CLIP_FRAMES)).astype(int))
      name = camera or dataset.cameras[0]
      found.append({
        "kind": kind, "data": scored.name, "episode": episode, "score": float(scored.scores_J[episode]),
        "length": length, "kept": bool(kept_J[episode]), "note": notes[episode] if notes else "",
        "frames": dataset.read_frames(episode, shown, [name])[name],
      })
  return found


def _facts(curation: Curation) -> dict[str, str]:
  """Returns what stands at the top of the page, by name."""
  facts = {}
  for selection in curation.selections:
    left_out = len(selection.kept_J) - int(selection.kept_J.sum())
    name = Path(selection.path).name
    facts |= {f"kept of {name}": f"{int(selection.kept_J.sum()):,}", f"left out of {name}": f"{left_out:,}"}
  rollouts = sum(len(scored.scores_J) for scored in curation.rollouts)
  return facts | ({"rollouts": f"{rollouts:,}"} if rollouts else {}) | dict(curation.facts)


def _clip(clip: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in clip.items() if name != "frames"} | page.clip(clip["frames"])
