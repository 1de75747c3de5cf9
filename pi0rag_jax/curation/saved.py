"""Trained classifiers on disk: `<folder>/classifier.json` and the arrays beside it, whole or absent."""

import dataclasses
import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from flax import traverse_util

from pi0rag_jax import files, schema, statistics
from pi0rag_jax.curation import classifiers
from pi0rag_jax.curation.thresholds import RolloutScores
from pi0rag_jax.curation.training import TrainedClassifier
from pi0rag_jax.errors import Pi0RagError

FILE_NAME, ARRAYS_NAME = "classifier.json", "classifier.npz"
_ARRAYS = ("params", "mean_F", "std_F")
_PARAMS = "params/"  # what the names of the network's arrays begin with


@dataclasses.dataclass(frozen=True)
class SavedClassifier:
  """A classifier, what it says of its rollouts, and what it was made of."""

  trained: TrainedClassifier
  rollouts: RolloutScores
  recipe: str  # a fingerprint of all that it was made of
  losses: Mapping[str, float]  # least validation loss by pair of checkpoints

  def save(self, folder) -> None:
    """Writes the classifier; what was there is replaced as a whole."""
    folder = Path(folder)
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    flat = traverse_util.flatten_dict(dict(self.trained.params), sep="/")
    arrays: dict[str, Any] = {_PARAMS + name: np.asarray(value) for name, value in flat.items()}
    np.savez(draft / ARRAYS_NAME, mean_F=self.trained.mean_F, std_F=self.trained.std_F, **arrays)
    own = {name: getattr(self.trained, name) for name in _OWN}
    values = {**own, "recipe": self.recipe, "losses": dict(self.losses),
              "rollouts": {name: [statistics.number(value) for value in array.tolist()]
                           for name, array in vars(self.rollouts).items()}}
    files.write_json(draft / FILE_NAME, values)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def load(folder) -> SavedClassifier:
  """Returns the classifier of a folder.

  Raises:
    Pi0RagError: there is none, or it is damaged.
  """
  file = Path(folder, FILE_NAME)
  if not file.is_file():
    raise Pi0RagError(f"no classifier in '{folder}': train it with --stages=classify")
  try:
    stored = schema.read(file, _Stored)
    with np.load(file.with_name(ARRAYS_NAME), allow_pickle=False) as opened:
      arrays = dict(opened)
    params = {name.removeprefix(_PARAMS): array for name, array in arrays.items() if name.startswith(_PARAMS)}
    own = {name: getattr(stored, name) for name in _OWN}
    trained = TrainedClassifier(**own, params=traverse_util.unflatten_dict(params, sep="/"), mean_F=arrays["mean_F"],
                                std_F=arrays["std_F"])
    classifiers.classifier(stored.name, stored.options)
  except (OSError, EOFError, ValueError, KeyError, TypeError, NotImplementedError, zipfile.BadZipFile, zlib.error,
          Pi0RagError) as error:
    raise Pi0RagError(f"the classifier in '{folder}' is damaged ({error}): remove the folder and train it again "
                      "with --stages=classify") from error
  rollouts = msgspec.structs.asdict(stored.rollouts)
  scores = RolloutScores(**{name: np.asarray(values, float) for name, values in rollouts.items()})
  return SavedClassifier(trained, scores, stored.recipe, stored.losses)


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
  """What `classifier.json` holds."""

  name: str
  options: dict[str, Any]
  trained_on: str
  validated_on: str
  epoch: int
  validation_loss: float
  recipe: str
  losses: dict[str, float]
  rollouts: "_Rollouts"


class _Rollouts(msgspec.Struct, forbid_unknown_fields=True):
  """`RolloutScores`, None for nan."""

  training_J: list[float | None]
  training_success_J: list[float | None]
  validation_J: list[float | None]
  validation_success_J: list[float | None]


_OWN = tuple(field.name for field in dataclasses.fields(TrainedClassifier) if field.name not in _ARRAYS)
