"""A copy of a memory that may be written meanwhile. Copying its folder is no backup: its files would disagree."""

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

from pi0rag_jax import files
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import address, anew, portable, schema, verify


def backup(place, out) -> Path:
  """Returns the new folder `out`, a memory as the one at `place` is at this moment; verified, whole or not there.

  Errors: Pi0RagError if `out` exists or cannot be written, or if the memory is missing or damaged.
  """
  out = portable.free_place(out)
  draft = out.with_name(f"{out.name}.{os.getpid()}.tmp")
  try:
    if address.on_server(place):
      anew.copy(place, draft)
    else:
      draft.mkdir()
      with schema.snapshot(schema.locate(place)) as source, \
          contextlib.closing(sqlite3.connect(draft / schema.NAME)) as target:
        source.backup(target)
    problems = verify.verify(draft)
    if problems:
      raise Pi0RagError(f"{address.shown(place)} is damaged, no backup was made: {problems[0]}")
    files.sync(draft / schema.NAME)
    files.sync(draft)
    draft.rename(out)
    files.sync(out.parent)
  except OSError as error:
    raise Pi0RagError(f"{out} cannot be written: {error}") from error
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  return out
