"""The self-contained page of a study, its charts as PNG and its numbers as JSON."""

import dataclasses
import functools
import importlib.metadata
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from pi0rag_jax import files
from pi0rag_jax.pages import page, panels
from pi0rag_jax.pages.panels import Panel

PAGE_NAME, SUMMARY_NAME = "report.html", "summary.json"
_PACKAGES = ("jax", "numpy", "scipy")
_COLOURS = 64  # of a PNG: a third of the size


@dataclasses.dataclass(frozen=True)
class Section:
  """One part of the page; what is empty is left out."""

  name: str  # of its picture
  title: str
  words: str
  panels: Sequence[Panel] = ()
  table: Sequence[Mapping[str, str]] = ()  # rows with the same columns, as they are to be read


def write(folder: str | os.PathLike, *, kicker: str, headline: str, facts: Mapping[str, str],
          sections: Sequence[Section], rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Path:
  """Returns the page, written with a PNG per section with charts and `summary.json` beside it."""
  folder = Path(folder).expanduser()
  folder.mkdir(parents=True, exist_ok=True)
  for section in sections:
    if section.panels:
      files.write(folder / f"{section.name}.png", functools.partial(_write_png, section.panels))
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  files.write_json(folder / SUMMARY_NAME, {"settings": settings, "versions": versions, "rows": rows})
  template = page.environment(Path(__file__).parent / "templates").get_template("study.html")
  files.write_text(folder / PAGE_NAME, template.render(
    kicker=kicker, headline=headline, facts=facts,
    sections=[{"name": section.name, "title": section.title, "words": section.words, "table": section.table,
               "charts": [page.chart(panel) for panel in section.panels]} for section in sections],
    settings={**settings, "versions": versions}))
  return folder / PAGE_NAME


def _write_png(shown: Sequence[Panel], file: BinaryIO) -> None:
  Image.open(io.BytesIO(panels.png(shown))).convert("RGB").quantize(_COLOURS).save(file, "PNG", optimize=True)
