"""Memories made of records that exist: read batch by batch, and written whole or not at all; and exact copies."""

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from pi0rag_jax import files
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import address, codec, portable
from pi0rag_jax.memory.record import Header, Record
from pi0rag_jax.memory.store import Batch, Commit, Contents, Store


def read(place) -> Contents:
  """Returns what a memory says. Errors: Pi0RagError if there is none; DamagedError for a damaged record."""
  store = address.open_store(place, read_only=True)
  try:
    with store.snapshot():
      return contents(store, place)
  finally:
    store.close()


def contents(store: Store, place) -> Contents:
  """Returns what a store says; inside its `snapshot` all of one moment."""
  return Contents(address.shown(place), store.header, store.commits(), dict(store.scan()), store.clock(),
                  store.last_id())


def write(out, header: Header, told: Iterable[Batch], *, episodes: int = 0, successes: int = 0) -> Path | None:
  """Makes a memory with these records, in this order; their ids are new. Returns its folder, None on a server.

  A kill leaves the whole memory or none at its place, and perhaps `<out>.draft` beside it, which the next call removes;
  on a server perhaps an empty one. Tokens are kept, so that no episode is learned twice.
  Errors: Pi0RagError if something is there, or it cannot be written.
  """
  place = address.locate(out)
  if not isinstance(place, Path):
    _fill(out, _numbered(header, told, (episodes, successes)))
    return None
  place = portable.free_place(place)
  draft = place.with_name(place.name + ".draft")
  shutil.rmtree(draft, ignore_errors=True)
  try:
    _fill(draft, _numbered(header, told, (episodes, successes)))
    draft.rename(place)
    files.sync(place.parent)
  except OSError as error:
    raise Pi0RagError(f"{place} cannot be written: {error}") from error
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  return place


def copy(source, target) -> int:
  """Makes the memory `target`, which must be new or empty, what `source` is at this moment; returns its records.

  Ids, tokens, counts and the clock are kept, what could be undone in `source` is final in the copy. It is read back and
  compared before this returns.
  Errors: Pi0RagError for a target that has records, or that is for another policy; a copy that is not equal.
  """
  told = read(source)
  _fill(target, told)
  wanted, found = digest(told), digest(read(target))
  if wanted != found:
    raise Pi0RagError(f"the copy in {address.shown(target)} is not what {told.place} was: digests {found} and "
                      f"{wanted}; remove it")
  return len(told.records)


def digest(told: Contents) -> str:
  """Returns a text that tells whether two memories say the same: header, clock, tokens, records and their counts."""
  state = hashlib.blake2b(digest_size=16)
  state.update(repr((told.header, told.clock, told.last_id, list(told.commits))).encode())
  for identity, record in told.records.items():
    state.update(repr((identity, *codec.encode(record, told.header)[0][len(codec.TEXTS) :])).encode())
  return state.hexdigest()


def _fill(place, told: Contents) -> None:
  store = address.open_store(place, told.header)
  try:
    store.fill(told)
    if isinstance(address.locate(place), Path):
      store.compact()
  finally:
    store.close()


def _numbered(header: Header, told: Iterable[Batch], clock: tuple[int, int]) -> Contents:
  """Returns contents with ids from 1 on."""
  records: dict[int, Record] = {}
  commits = []
  for batch in told:
    first = len(records) + 1
    records |= zip(range(first, first + len(batch.records)), batch.records)
    if batch.token is not None:
      whole = codec.batch_digest(codec.digest(record, header) for record in batch.records)
      commits.append(Commit(batch.token, range(first, len(records) + 1), whole))
  return Contents("", header, commits, records, clock, len(records))
