"""What a checkpoint's files held when it was written, so that a damaged one is refused instead of loaded.

`digests.json` lies in the directory it describes; openpi and Orbax take no notice of it. A directory without one, such
as a checkpoint of openpi, is not checked. A directory inside that has a `digests.json` of its own answers for itself.
"""

import concurrent.futures
import hashlib
import os
import pathlib
from collections.abc import Iterator

import msgspec

from pi0rag_jax import files, lfs, schema
from pi0rag_jax.errors import Pi0RagError

FILE_NAME = "digests.json"
DIGEST_BYTES = 16
PIECE_BYTES = 2**20
SHOWN = 3


class DamagedCheckpoint(Pi0RagError):
  """Files of a checkpoint are missing or are not what was written; training then looks for an older one."""


class _File(msgspec.Struct):
  bytes: int
  blake2b: str


def write(directory: pathlib.Path) -> None:
  """Writes down what the files of a directory hold, after bringing them to the disk."""
  names = sorted(_names(directory))
  with _threads() as threads:
    entries = list(threads.map(lambda name: _digest(directory / name, sync=True), names))
  found = {name: msgspec.to_builtins(entry) for name, entry in zip(names, entries)}
  files.write_json(directory / FILE_NAME, {"files": found})
  for folder in {(directory / name).parent for name in names}:
    files.sync(folder)


def check(directory: pathlib.Path) -> None:
  """Raises DamagedCheckpoint that names the files which are not what was written; reads every file."""
  damage = list(_damage(directory))
  if pointer := damage and lfs.pointer_in(directory):
    raise DamagedCheckpoint(f"{pointer} {lfs.ADVICE}")
  if damage:
    more = f" and {len(damage) - SHOWN} more" if len(damage) > SHOWN else ""
    raise DamagedCheckpoint(f"{directory} is damaged or was not copied whole: {', '.join(damage[:SHOWN])}{more}")


def _damage(directory: pathlib.Path) -> Iterator[str]:
  """Yields what is wrong with each damaged file, named from the directory."""
  if not (directory / FILE_NAME).exists():
    return
  try:
    entries = schema.read(directory / FILE_NAME, dict[str, dict[str, _File]]).get("files", {})
  except Pi0RagError:
    entries = {}
  if not entries:
    yield f"{FILE_NAME} cannot be read"
  with _threads() as threads:
    yield from filter(None, threads.map(lambda name: _difference(directory / name, name, entries[name]), entries))
  for name in entries:
    if pathlib.PurePath(name).name == FILE_NAME:
      inner = pathlib.PurePath(name).parent
      yield from (f"{inner}/{found}" for found in _damage(directory / inner))


def _difference(path: pathlib.Path, name: str, written: _File) -> str:
  """Returns how a file differs from what was written, '' where it does not."""
  if not path.is_file():
    return f"{name} is missing"
  try:
    found = _digest(path)
  except OSError as error:
    return f"{name} cannot be read ({error.strerror})"
  if found.bytes != written.bytes:
    return f"{name} has {found.bytes} bytes of {written.bytes}"
  return "" if found == written else f"{name} has other content"


def _names(directory: pathlib.Path) -> Iterator[str]:
  """Yields the files of a directory; of one inside that answers for itself, only its digests."""
  for path in directory.iterdir():
    if path.is_file():
      if path.name != FILE_NAME:
        yield path.name
    elif (path / FILE_NAME).is_file():
      yield f"{path.name}/{FILE_NAME}"
    else:
      yield from (f"{path.name}/{name}" for name in _names(path))


def _digest(path: pathlib.Path, *, sync: bool = False) -> _File:
  """Returns what a file holds."""
  digest, size = hashlib.blake2b(digest_size=DIGEST_BYTES), 0
  with path.open("rb", buffering=0) as file:
    while piece := file.read(PIECE_BYTES):
      digest.update(piece)
      size += len(piece)
    if sync:
      os.fsync(file.fileno())
  return _File(size, digest.hexdigest())


def _threads() -> concurrent.futures.ThreadPoolExecutor:
  return concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 16))
