"""What the pages share: their templates, pictures that travel within a page, numbers as people read them."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import jinja2
from PIL import Image

from pi0rag_jax.files import write_text as write_text  # for eval.report
from pi0rag_jax.pages import clips, panels

TEMPLATES = Path(__file__).parent / "templates"  # report.css, colors.css, dom.js
# Of a page that a server answers with: nothing of it comes from elsewhere, and nobody keeps or frames it.
HEADERS = {
  "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
  "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src "
                             "'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'",
  "Connection": "close"}
_QUALITY = 80  # of JPEG


def environment(templates: Path) -> jinja2.Environment:
  """Returns what renders the templates of a folder, and those that all pages share; every text is escaped."""
  made = jinja2.Environment(
    loader=jinja2.FileSystemLoader([templates, TEMPLATES]),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  made.filters.update(percent=percent, interval=interval)
  made.globals.update(light=panels.LIGHT, dark=panels.DARK)  # of colors.css
  return made


def chart(panel: panels.Panel) -> dict[str, str]:
  """Returns a panel as a template shows it: title, alt and uri."""
  return {"title": panel.title, "alt": panel.alt, "uri": data_uri(panels.svg(panel).encode(), "image/svg+xml")}


def clip(*sides) -> dict[str, str]:
  """Returns films side by side, see `clips.clip_webp`, as a template shows them: uri, and still without motion."""
  return {
    "uri": data_uri(clips.clip_webp(*sides), "image/webp"),
    "still": data_uri(clips.clip_still(*sides), "image/webp"),
  }


def data_uri(content: bytes, kind: str) -> str:
  """Returns the content as a data URI of MIME type `kind`."""
  return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def jpeg(picture: Image.Image) -> str:
  """Returns a picture as a data URI."""
  buffer = io.BytesIO()
  picture.save(buffer, "JPEG", quality=_QUALITY)
  return data_uri(buffer.getvalue(), "image/jpeg")


def percent(share: float | None, digits: int = 1) -> str:
  """Returns a share as a number of per cent, '-' where there is none."""
  return "-" if share is None else f"{100 * share:.{digits}f}".replace("-", "\u2212")


def interval(bounds: Sequence[float | None], digits: int = 1) -> str:
  """Returns '[92.3, 97.2]' in per cent, '' where there is none."""
  return "" if None in bounds else f"[{percent(bounds[0], digits)}, {percent(bounds[1], digits)}]"
