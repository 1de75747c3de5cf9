"""A memory on a server in a file of this machine's, kept as the server has it: for what reads the file's tables."""

import tempfile
from pathlib import Path

from pi0rag_jax.memory import address, anew
from pi0rag_jax.memory.sqlite_store import SqliteStore
from pi0rag_jax.memory.store import Change


class Mirror:
  """Follows a memory until `close`; while its server is away the file is what it was. Errors: as `open_store`."""

  def __init__(self, place: address.ServerAddress):
    self._source = address.open_store(place, read_only=True)
    self._folder = tempfile.TemporaryDirectory(prefix="pi0rag_mirror_")
    try:
      with self._source.snapshot():
        contents = anew.contents(self._source, place)
      self._copy = SqliteStore(self._folder.name, self._source.header)
      self._copy.fill(contents)
      self._source.follow(self._take)
    except BaseException:
      self.close()
      raise

  @property
  def path(self) -> Path:
    """The file."""
    return self._copy.path

  def close(self) -> None:
    """Ends following, and removes the file."""
    self._source.close()
    if hasattr(self, "_copy"):
      self._copy.close()
    self._folder.cleanup()

  def _take(self, change: Change) -> None:
    self._copy.take(change, self._source.commits())
