"""The one error base of the project: a message for the user that says what was seen and what is allowed."""

import sys
from collections.abc import Callable

SHOWN = 60  # characters of a name that somebody else wrote


class Pi0RagError(Exception):
  """A mistake that the user can mend; command lines print its text without a traceback."""


def exit_status(run: Callable[[], int]) -> int:
  """Returns what a command returns; 2 for a user's mistake, with one line that says it."""
  try:
    return run()
  except Pi0RagError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def unknown_name(kind: str, name: str, known) -> Pi0RagError:
  """Returns the error for an unknown `name` of a `kind`, with the nearest and all the valid names."""
  import difflib

  name, known = cut(name), sorted(map(cut, known))
  near = difflib.get_close_matches(name, known, n=1)
  hint = f" Did you mean '{near[0]}'?" if near else ""
  return Pi0RagError(f"unknown {kind} '{name}'.{hint} Valid names: {', '.join(known)}")


def cut(name: str, shown: int = SHOWN) -> str:
  """Returns a text that somebody else wrote, short enough for a message."""
  return name if len(name) <= shown else f"{name[:shown]}..."
