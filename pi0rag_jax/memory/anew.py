"""Memories made of records that exist: read batch by batch, and written whole or not at all."""

import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from pi0rag_jax import files
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import portable
from pi0rag_jax.memory.record import Header, Record
from pi0rag_jax.memory.store import SqliteStore


@dataclasses.dataclass(frozen=True)
class Batch:
  """What one commit added."""

  token: str | None  # see Memory.add; None of records that came without one
  ids: Sequence[int]
  records: Sequence[Record]


@dataclasses.dataclass(frozen=True)
class Contents:
  """All that a memory says at one moment."""

  directory: Path
  header: Header
  batches: Sequence[Batch]  # in the order of their commits, those without a token first
  episodes: int  # see Memory.episodes
  successes: int


def read(directory) -> Contents:
  """Returns what a memory says. Errors: Pi0RagError if there is none; DamagedError for a damaged record."""
  directory = Path(directory).expanduser()
  store = SqliteStore(directory, read_only=True)
  with store.snapshot():
    left = dict(store.scan())
    told, (episodes, successes) = store.batches(), store.clock()
  batches = []
  for token, ids in told:
    kept = [identity for identity in ids if identity in left]
    batches.append(Batch(token, kept, [left.pop(identity) for identity in kept]))
  alone = [Batch(None, list(left), list(left.values()))] if left else []
  return Contents(directory, store.header, alone + batches, episodes, successes)


def write(out, header: Header, batches: Iterable[Batch], *, episodes: int = 0, successes: int = 0) -> Path:
  """Returns the folder of a new memory with these records, in this order; their ids are new.

  A kill leaves the whole memory or none at its place, and perhaps `<out>.draft` beside it, which the next call removes.
  Tokens are kept, so that no episode is learned twice; taking one back removes its records.
  Errors: Pi0RagError if something is there, or it cannot be written.
  """
  out = portable.free_place(out)
  draft = out.with_name(out.name + ".draft")
  shutil.rmtree(draft, ignore_errors=True)
  try:
    store = SqliteStore(draft, header)
    try:
      for batch in batches:
        if batch.records or batch.token is not None:
          store.add(batch.records, token=batch.token)
      if episodes:
        ends = [True] * successes + [False] * (episodes - successes)
        store.add([], outcomes=[({}, success) for success in ends])
      store.compact()
    finally:
      store.close()
    draft.rename(out)
    files.sync(out.parent)
  except OSError as error:
    raise Pi0RagError(f"{out} cannot be written: {error}") from error
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  return out
