"""Trained classifiers on disk: `<folder>/classifier.json` and the arrays beside it, whole or absent."""

import dataclasses
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

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
    fields = {field.name: getattr(self.trained, field.name) for field in dataclasses.fields(self.trained)
              if field.name not in _ARRAYS}
    values = {**fields, "recipe": self.recipe, "losses": dict(self.losses),
              "rollouts": {name: array.tolist() for name, array in vars(self.rollouts).items()}}
    (draft / FILE_NAME).write_text(json.dumps(values, indent=1) + "\n", encoding="utf8")
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
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf8"))
    with np.load(file.with_name(ARRAYS_NAME), allow_pickle=False) as stored:
      arrays = dict(stored)
    scores = RolloutScores(**{name: np.asarray(array, float) for name, array in values.pop("rollouts").items()})
    recipe, losses = values.pop("recipe"), values.pop("losses")
    params = {name.removeprefix(_PARAMS): array for name, array in arrays.items() if name.startswith(_PARAMS)}
    trained = TrainedClassifier(**values, params=traverse_util.unflatten_dict(params, sep="/"),
                                mean_F=arrays["mean_F"], std_F=arrays["std_F"])
  except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
    raise Pi0RagError(f"the classifier in '{folder}' is damaged ({error!r}): remove the folder and train it again "
                      "with --stages=classify") from error
  return SavedClassifier(trained, scores, recipe, losses)
