"""A copy of a memory that may be written meanwhile. Copying its folder is no backup: its files would disagree."""

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

from pi0rag_jax import files
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import portable, schema, verify


def backup(directory, out) -> Path:
  """Returns the new folder `out`, a memory as the one in `directory` is at this moment; verified, whole or not there.

  Errors: Pi0RagError if `out` exists or cannot be written, or if the memory is missing or damaged.
  """
  out, path = portable.free_place(out), schema.locate(directory)
  draft = out.with_name(f"{out.name}.{os.getpid()}.tmp")
  try:
    draft.mkdir()
    with schema.snapshot(path) as source, contextlib.closing(sqlite3.connect(draft / schema.NAME)) as target:
      source.backup(target)
    problems = verify.verify(draft)
    if problems:
      raise Pi0RagError(f"{path.parent} is damaged, no backup was made: {problems[0]}")
    files.sync(draft / schema.NAME)
    files.sync(draft)
    draft.rename(out)
    files.sync(out.parent)
  except OSError as error:
    raise Pi0RagError(f"{out} cannot be written: {error}") from error
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  return out
