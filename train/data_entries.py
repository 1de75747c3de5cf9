"""The entries of `config.data`: where a data set lies, how much it counts, what is kept of it and how it is read."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pi0rag_jax.curation import selection
from pi0rag_jax.data.dataset import Dataset
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.typing import Config
from train import debug_data


@dataclasses.dataclass(frozen=True)
class Entry:
  """One data set of a training."""

  path: Path
  weight: float | None  # in the mixture
  selection: str | None  # file of the episodes that are kept; None keeps all
  options: Mapping[str, Any]  # of the reader

  def chosen(self, dataset: Dataset) -> Dataset:
    """Returns the episodes of the data set that the entry's selection keeps."""
    return selection.choose(dataset, self.selection) if self.selection else dataset


def read_all(config: Config, workdir: Path) -> list[Entry]:
  """Returns the entries of `config.data`; there is one at least, and all are there."""
  if not config.data:
    raise Pi0RagError("config.data is empty: give data sets, such as --config.data=\"({'path': 'data/my_robot'},)\"")
  if not all(isinstance(entry, Mapping | ConfigDict) for entry in config.data):
    raise Pi0RagError(f"config.data is {config.data!r}; expected data sets, such as ({{'path': 'data/my_robot'}},)")
  entries = [read(entry, workdir) for entry in config.data]
  for entry in entries:
    if config.get("make_data") and not entry.path.exists():
      raise Pi0RagError(f"no data set at '{entry.path}'; make it with: {config.make_data}")
  return entries


def read(entry: Mapping[str, Any], workdir: Path) -> Entry:
  """Returns an entry from its dictionary: `path`, and if wanted `weight`, `selection` and reader's options.

  Args:
    entry: as the configuration has it.
    workdir: below which the data sets of `debug_data` are made.
  """
  options = dict(entry)
  if "path" not in options:
    raise Pi0RagError(f"an entry of config.data has no 'path': {options}")
  path = debug_data.resolve(options.pop("path"), workdir)
  return Entry(path, options.pop("weight", None), options.pop("selection", None), options)
