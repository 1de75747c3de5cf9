"""Files that are whole or absent: written under another name, brought to the disk, then renamed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write(path: str | os.PathLike, fill: Callable[[BinaryIO], Any]) -> None:
  """Writes what `fill` puts into a file, in the place of what was there; a reader sees the old or the whole new one.

  Several writers of the same content do no harm. Folders that are missing are made.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    with draft.open("wb") as file:
      fill(file)
      file.flush()
      os.fsync(file.fileno())
    os.replace(draft, path)
  finally:
    draft.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text, as `write` does."""
  write(path, lambda file: file.write(text.encode()))


def write_json(path: str | os.PathLike, values: Any) -> None:
  """Writes values as JSON, as `write` does.

  Raises:
    TypeError, ValueError: JSON cannot hold them; NaN and infinity it cannot.
  """
  write_text(path, json.dumps(values, indent=1, allow_nan=False) + "\n")
