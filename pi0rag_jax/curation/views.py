"""Some episodes of a data set, as a data set of their own that knows their numbers in the other."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax.data.dataset import Dataset, EpisodeData
from pi0rag_jax.errors import Pi0RagError


class EpisodesView(Dataset):
  """Some episodes of a data set, numbered from 0 on in their order."""

  format = "view"

  def __init__(self, dataset: Dataset, episodes: Sequence[int] | np.ndarray):
    """Takes the numbers, int64[K], of episodes in the data set; the source of a view of a view is what both are of."""
    self.episodes = np.asarray(episodes, np.int64)
    if isinstance(dataset, EpisodesView):
      dataset, self.episodes = dataset.source, dataset.episodes[self.episodes]
    super().__init__(dataset.path, fields=dataset.fields, skip_bad=dataset.skip_bad)
    self.source = dataset
    self.damaged = dataset.damaged
    self.fps, self.says_fps, self.camera_keys = dataset.fps, dataset.says_fps, dataset.camera_keys
    self.lengths = dataset.lengths[self.episodes]

  def spread(self, values_K) -> np.ndarray:
    """Returns float64[J], what is known of the episodes by their numbers in the source; nan for the others."""
    values_J = np.full(self.source.num_episodes, np.nan)
    values_J[self.episodes] = values_K
    return values_J

  def source_frames(self) -> np.ndarray:
    """Returns int64[F], the number of every frame where the source's are numbered through, episode by episode."""
    first_J = np.cumsum(self.source.lengths) - self.source.lengths
    return np.concatenate([first_J[episode] + np.arange(length)
                           for episode, length in zip(self.episodes, self.lengths)])

  @property
  def state_dim(self) -> int:
    return self.source.state_dim

  @property
  def action_dim(self) -> int:
    return self.source.action_dim

  def episode_name(self, episode: int) -> str:
    return self.source.episode_name(int(self.episodes[episode]))

  def episode_fps(self, episode: int) -> float:
    return self.source.episode_fps(int(self.episodes[self._checked(episode)]))

  def files(self) -> list[Path]:
    return self.source.files()

  def fingerprint(self) -> str:
    """Returns a hash of the source and of which of its episodes these are."""
    return hashlib.sha256(f"{self.source.fingerprint()} {self.episodes.tolist()}".encode()).hexdigest()

  def read_samples(
    self, episodes: np.ndarray, frames: np.ndarray, *, horizon: int, cameras: Sequence[str] | None = None
  ) -> dict[str, Any]:
    """Returns what Dataset.read_samples does, in the source's own way, which may be faster."""
    return self.source.read_samples(self.episodes[episodes], frames, horizon=horizon, cameras=cameras)

  def _read_arrays(self, episode: int) -> EpisodeData:
    return self.source._read_arrays(int(self.episodes[episode]))

  def _read_camera(self, episode: int, key: str, indices: np.ndarray) -> np.ndarray:
    return self.source._read_camera(int(self.episodes[episode]), key, indices)


def view(dataset: Dataset, kept_J: np.ndarray) -> EpisodesView:
  """Returns the data set of the episodes that are kept.

  Args:
    dataset: of J episodes.
    kept_J: bool[J].
  Raises:
    Pi0RagError: another number of episodes, or none is kept.
  """
  kept_J = np.asarray(kept_J, bool)
  if kept_J.shape != (dataset.num_episodes,):
    raise Pi0RagError(f"the selection is of {len(kept_J)} episodes, '{dataset.path}' has {dataset.num_episodes}: "
                      "select again")
  if not kept_J.any():
    raise Pi0RagError(f"the selection keeps no episode of '{dataset.path}': leave it out, or lower the threshold")
  return EpisodesView(dataset, np.flatnonzero(kept_J))


def readable(dataset: Dataset) -> EpisodesView:
  """Returns the data set of the episodes that can be read: all, unless damaged ones are skipped."""
  numbers = [number for number, _ in dataset.iterate()] if dataset.skip_bad else range(dataset.num_episodes)
  return EpisodesView(dataset, list(numbers))
