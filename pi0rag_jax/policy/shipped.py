"""The policies that come with the package, by name."""

import pathlib

from pi0rag_jax import errors
from pi0rag_jax.policy.spec import FILE_NAME

ASSETS = pathlib.Path(__file__).resolve().parent.parent / "assets"


def names() -> list[str]:
  """Returns the names of the shipped policies."""
  return sorted(path.parent.name for path in ASSETS.glob(f"*/{FILE_NAME}"))


def directory(policy: str) -> pathlib.Path:
  """Returns the directory of a shipped policy, or of one's own given as a path.

  Errors: Pi0RagError for what is neither.
  """
  for path in (ASSETS / policy, pathlib.Path(policy).expanduser()):
    if (path / FILE_NAME).is_file():
      return path
  raise errors.unknown_name(f"policy (and no directory with a {FILE_NAME})", policy, names())
