"""Data sets whose samples are the model's already: numbers are made once, pictures renamed and resized by the batch.

What a robot's and a model's transforms do to one sample takes as long as a third of a small model's step on a CPU.
Numbers of a frame never change, and most robots pass pictures on as they are: then nothing is left to do.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pi0rag_jax.curation.views import EpisodesView
from pi0rag_jax.data import samples
from pi0rag_jax.data.arrays import ArrayDataset, resized
from pi0rag_jax.data.dataset import Dataset
from pi0rag_jax.robots.transforms import Transform

MOST_BYTES = 1 << 30  # of the numbers; above, each sample is made when it is wanted


def prepared(dataset: Dataset, transform: Transform, *, horizon: int) -> tuple[Dataset, Transform | None]:
  """Returns (data set, transform): those given, or a data set that needs no transform, with the same samples.

  Args:
    dataset: one whose frames lie in arrays is prepared.
    transform: of one sample into the model's entries.
    horizon: steps of an action chunk.
  """
  if not isinstance(dataset, ArrayDataset):
    return dataset, transform
  first = samples.unstack(dataset.read_samples(np.zeros(1, int), np.zeros(1, int), horizon=horizon), 0)
  numbers = {name: np.asarray(value) for name, value in transform(first).items() if name != "image"}
  cameras = picture_columns(first, transform)
  if cameras is None or dataset.num_frames * sum(value.nbytes for value in numbers.values()) > MOST_BYTES:
    return dataset, transform
  return PreparedDataset(dataset, transform, cameras, horizon), None


def picture_columns(sample: dict, transform: Transform) -> dict[str, tuple[str | None, tuple[int, int]]] | None:
  """Returns model's camera -> (data set's camera or None where it is black, size), if pictures are passed on unchanged.

  Found out with noise: a picture that comes out as it went in, resized at most, is that camera's; None if one is not.
  """
  rng = np.random.default_rng(0)
  noise = {name: rng.integers(1, 256, picture.shape, np.uint8) for name, picture in sample["image"].items()}
  found = {}
  for camera, seen in transform({**sample, "image": noise})["image"].items():
    size = seen.shape[:2]
    same = [name for name, picture in noise.items() if np.array_equal(resized(picture[None], size)[0], seen)]
    if not same and seen.any():
      return None
    found[camera] = (same[0] if same else None, size)
  return found


class PreparedDataset(EpisodesView):
  """All episodes of a data set; `read_samples` gives the model's entries."""

  def __init__(self, dataset: ArrayDataset, transform: Transform, cameras, horizon: int):
    super().__init__(dataset, range(dataset.num_episodes))
    self._starts, self._pictures = np.cumsum(self.lengths) - self.lengths, cameras
    self._table: dict[str, Any] = {}
    for episode in range(self.num_episodes):
      self._prepare(episode, transform, horizon)

  def _prepare(self, episode: int, transform: Transform, horizon: int) -> None:
    """Makes the numbers of an episode's frames."""
    data = self.read_episode(episode, images=False)
    batch = samples.from_episode(data, {}, np.arange(len(data)), horizon)
    del batch["image"]
    made = samples.stack([{name: value for name, value in transform(samples.unstack(batch, i)).items()
                           if name not in ("image", "prompt")} for i in range(len(data))])
    _put(self._table, made, int(self._starts[episode]), self.num_frames)

  def read_samples(self, episodes: np.ndarray, frames: np.ndarray, *, horizon: int,
                   cameras: Sequence[str] | None = None) -> dict[str, Any]:
    rows = self._starts[episodes] + frames
    wanted = sorted({name for name, _ in self._pictures.values() if name is not None})
    read = self.source.read_pictures(episodes, frames, wanted)
    images = {camera: np.zeros((len(rows), *size, 3), np.uint8) if name is None else resized(read[name], size)
              for camera, (name, size) in self._pictures.items()}
    return {**_take(self._table, rows), "image": images}


def _put(table: dict[str, Any], made: dict[str, Any], start: int, rows: int) -> None:
  """Puts the arrays of some frames where they belong in those of all."""
  for name, values in made.items():
    if isinstance(values, dict):
      _put(table.setdefault(name, {}), values, start, rows)
      continue
    values = values.astype(np.float32) if values.dtype == np.float64 else values
    table.setdefault(name, np.zeros((rows, *values.shape[1:]), values.dtype))[start : start + len(values)] = values


def _take(table: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
  return {name: _take(value, rows) if isinstance(value, dict) else value[rows] for name, value in table.items()}
