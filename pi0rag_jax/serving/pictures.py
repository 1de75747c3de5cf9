"""Pictures of the episodes that a server kept, by the ids that robots gave them."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pi0rag_jax.data.dataset import Dataset
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.data.validation import BY, POLICY
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.pages import page

SHOWN, HEIGHT_PX = 10, 96
LARGE_PX = 320  # the height of a moment's pictures
EPISODE = "episode"  # the entry of an episode's metadata that says its id


class KeptEpisodes:
  """A folder of episodes in a format of `data`, which may grow meanwhile. For one thread."""

  def __init__(self, folder: str):
    self._folder = Path(folder).expanduser()
    self._dataset: Dataset | None = None
    self._seen = 0  # when the folder changed last, ns
    self._numbers: dict[str, int] = {}

  def strip(self, episode: str) -> list[dict[str, Any]]:
    """Returns some moments of an episode, evenly spread: `picture` as a data URI, `by` whom, `second`. Empty where the
    episode was not kept.
    """
    if episode not in self._numbers:
      self._look()
    if self._dataset is None or episode not in self._numbers or not self._dataset.cameras:
      return []
    number, camera = self._numbers[episode], self._dataset.cameras[0]
    data = self._dataset.read_episode(number, images=False)
    frames = np.unique(np.linspace(0, len(data) - 1, SHOWN).astype(int))
    pictures = self._dataset.read_frames(number, frames, [camera])[camera]
    by_F = data.extras.get(BY)
    return [{"picture": _jpeg(picture), "by": POLICY if by_F is None else str(by_F[frame]),
             "second": round(float(data.timestamps[frame] - data.timestamps[0]), 2)}
            for frame, picture in zip(frames, pictures)]

  def find(self, episode: str) -> tuple[Dataset, int] | None:
    """Returns the data set that has an episode and its number there, None where it was not kept, or was taken back."""
    self._look()
    if self._dataset is None or episode not in self._numbers:
      return None
    return self._dataset, self._numbers[episode]

  def _look(self) -> None:
    """Finds out which episodes there are, where the folder has changed."""
    changed = self._folder.stat().st_mtime_ns if self._folder.is_dir() else 0
    if changed == self._seen:
      return
    self._seen = changed
    try:
      self._dataset = open_dataset(self._folder, skip_bad=True)
    except Pi0RagError:  # nothing was kept yet
      self._dataset, self._numbers = None, {}
      return
    self._numbers = {str(data.metadata.get(EPISODE, "")): number for number, data in self._dataset.iterate()}


def of_frame(dataset: Dataset, number: int, frame: int) -> list[dict[str, Any]]:
  """Returns what each camera saw at a frame of an episode: its name as `camera`, and `picture` as a data URI."""
  return [{"camera": camera, "picture": _jpeg(pictures[0], LARGE_PX)}
          for camera, pictures in dataset.read_frames(number, [frame]).items()]


def _jpeg(picture: np.ndarray, height_px: int = HEIGHT_PX) -> str:
  image = Image.fromarray(picture)
  image.thumbnail((4 * height_px, height_px))
  return page.jpeg(image)
