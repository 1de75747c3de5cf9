"""The data sets of a curation, opened as a training of their kind opens them: so episodes have the same numbers."""

from pathlib import Path

from pi0rag_jax.curation import views
from pi0rag_jax.curation.views import EpisodesView
from pi0rag_jax.data.dataset import Dataset
from pi0rag_jax.errors import Pi0RagError, unknown_name
from pi0rag_jax.typing import Config
from train import data_entries, head_data, loop, policy_data
from train.data_entries import Entry
from train.named import named_config


def demonstrations(training: Config, workdir: Path) -> dict[str, EpisodesView]:
  """Returns the episodes that a training learns from and that can be read, by the path of their data set.

  Args:
    training: its configuration.
    workdir: of the training.
  Raises:
    Pi0RagError: a data set cannot be opened, or two entries have the same path.
  """
  check_kind(training)
  datasets = [_open(training, entry) for entry in data_entries.read_all(training, workdir)]
  found = {str(dataset.path): views.readable(dataset) for dataset in datasets}
  if len(found) < len(datasets):
    raise Pi0RagError(f"several entries of config.training.data have the same path, of {', '.join(found)}: a selection "
                      "tells data sets apart by their paths, so curate them one by one")
  return found


def recorded(training: Config, path: str | Path, workdir: Path) -> EpisodesView:
  """Returns the episodes of rollouts that can be read, their fields those of the training's data sets."""
  check_kind(training)
  everything = training.copy_and_resolve_references().unlock()
  everything.successes_only = False
  return views.readable(_open(everything, data_entries.read({"path": path}, workdir)))


def check_kind(training: Config) -> None:
  """Raises Pi0RagError for a kind of training that there is not."""
  if training.kind not in loop.KINDS:
    raise unknown_name("kind of training", training.kind, loop.KINDS)


def _open(training: Config, entry: Entry) -> Dataset:
  """Returns the data set of an entry as its kind of training reads it, with the actions that were executed."""
  if training.kind == "head":
    return head_data.open_entry(training, entry)
  return policy_data.open_source(training, named_config(training), entry)[0]
