"""git-lfs pointers: a few lines of text in the place of a file that was never pulled."""

from pathlib import Path

SIGNATURE = b"version https://git-lfs.github.com/spec/"
ADVICE = "is a git-lfs pointer: run git lfs pull"
# The specification's limit; data of this size are rarer than pointers.
MAX_POINTER_BYTES = 1024


def is_pointer(path: str | Path) -> bool:
  """Returns whether a pointer lies at `path`; False where nothing can be read."""
  try:
    with open(path, "rb") as file:
      return file.read(len(SIGNATURE)) == SIGNATURE
  except OSError:
    return False


def pointer_in(folder: str | Path) -> Path | None:
  """Returns the first pointer at or below a folder, None where there is none."""
  small = (file for file in Path(folder).rglob("*") if file.is_file() and file.stat().st_size <= MAX_POINTER_BYTES)
  return next(filter(is_pointer, small), None)


def reason(path: str | Path, error: object) -> str:
  """Returns why a file cannot be read: it is a pointer, or what was raised."""
  return ADVICE if is_pointer(path) else str(error)


def damaged(path: str | Path, error: object) -> str:
  """Returns the message for a file of weights that cannot be read."""
  return f"{path} {ADVICE}" if is_pointer(path) else f"{path} is damaged or was not copied whole: {error}"
