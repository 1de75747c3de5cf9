"""What a classifier reads of episodes: state, actions and embeddings side by side, one row per step."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pi0rag_jax.curation.embeddings import Embeddings
from pi0rag_jax.data.dataset import Dataset, EpisodeData
from pi0rag_jax.errors import Pi0RagError, unknown_name

STATE, ACTIONS, EMBEDDINGS = "state", "actions", "embeddings"
PARTS = (STATE, ACTIONS, EMBEDDINGS)
# As the number of frames after which rollouts are cut: the median length of the successes; and none.
AT_SUCCESSES, UNCUT = -1, 0


@dataclasses.dataclass(frozen=True)
class Episodes:
  """J episodes of T steps each, T of any length."""

  values: tuple[np.ndarray, ...]  # float32[T, F] of each episode
  success_J: np.ndarray  # float64: 1, 0, or nan where it is not known

  def __len__(self) -> int:
    return len(self.values)

  @property
  def width(self) -> int:
    """F."""
    return self.values[0].shape[-1]

  def padded(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns (float32[J, T, F], bool[J, T]), T the longest; zeros where there is no step."""
    mask_ET = np.arange(max(map(len, self.values))) < np.array([len(v) for v in self.values])[:, None]
    values_ETF = np.zeros((*mask_ET.shape, self.width), np.float32)
    values_ETF[mask_ET] = np.concatenate(self.values)
    return values_ETF, mask_ET

  def as_steps(self) -> "Episodes":
    """Returns every step as an episode of its own, with the label of the one that it is of."""
    rows_NF = np.concatenate(self.values)
    return Episodes(tuple(rows_NF[:, None]), np.repeat(self.success_J, [len(v) for v in self.values]))

  def cut(self, steps: int | None) -> "Episodes":
    """Returns the first steps of every episode; all of them for None."""
    return Episodes(tuple(v[:steps] for v in self.values), self.success_J)


def common_frames(lengths_J: np.ndarray, success_J: np.ndarray, cut: int) -> int | None:
  """Returns after how many frames the rollouts of a checkpoint are cut; None: they are not.

  A rollout that fails runs to the time limit, one that succeeds ends there. Uncut, length alone gives the outcome away:
  what judges whole episodes would learn that, and what judges steps that late ones are of failures. Demonstrations all
  end in success, and neither would say anything of them.

  Args:
    lengths_J: int[J], frames.
    success_J: float[J]: 1, 0, or nan where it is not known.
    cut: a number of frames, UNCUT or AT_SUCCESSES; without a success the latter cuts nothing.
  """
  if cut < AT_SUCCESSES:
    raise Pi0RagError(f"rollouts are cut after {cut} frames; allowed: whole numbers from 1, {UNCUT} for not at all, "
                      f"{AT_SUCCESSES} for the median length of the successes")
  successes = lengths_J[success_J == 1]
  if cut == UNCUT or (cut == AT_SUCCESSES and not len(successes)):
    return None
  return cut if cut > 0 else int(np.median(successes))


def join(parts: Sequence[Episodes]) -> Episodes:
  """Returns the episodes of several sets, one after the other."""
  return Episodes(tuple(v for part in parts for v in part.values), np.concatenate([p.success_J for p in parts]))


def read(dataset: Dataset, parts: Sequence[str], *, success_J, every: int = 1,
         embeddings: Embeddings | None = None) -> Episodes:
  """Returns a data set's episodes as a classifier reads them.

  Args:
    dataset: whose numbers are read; its pictures are not.
    parts: some of PARTS, in the order in which they are put side by side.
    success_J: float[J]: 1, 0, or nan where it is not known.
    every: takes the frames 0, every, 2 every, ...
    embeddings: of the same frames, where they are a part.
  Raises:
    Pi0RagError: an unknown part, embeddings that are missing or of other frames, or numbers that are not finite.
  """
  for part in parts:
    if part not in PARTS:
      raise unknown_name("input of a classifier", part, PARTS)
  if not parts:
    raise Pi0RagError(f"a classifier without inputs; allowed: some of {', '.join(PARTS)}")
  if EMBEDDINGS in parts and (embeddings is None or embeddings.every != every):
    there = "none" if embeddings is None else f"those of every {embeddings.every}-th"
    raise Pi0RagError(f"the classifier reads embeddings of every {every}-th frame of '{dataset.path}', there are "
                      f"{there}: compute them first")
  values = []
  for episode in range(dataset.num_episodes):
    data = dataset.read_episode(episode, images=False)
    columns = [_part(part, episode, data, every, embeddings) for part in parts]
    row_TF = np.concatenate(columns, axis=-1, dtype=np.float32)
    if not np.isfinite(row_TF).all():
      raise Pi0RagError(f"{dataset.episode_name(episode)} has NaN or infinity among its {', '.join(parts)}")
    values.append(row_TF)
  return Episodes(tuple(values), np.asarray(success_J, float))


def actions_of(data: EpisodeData) -> np.ndarray:
  """Returns float32[F, A], what was executed: of stored chunks the first step."""
  return data.actions if data.actions.ndim == 2 else data.actions[:, 0]


def _part(part: str, episode: int, data: EpisodeData, every: int, embeddings: Embeddings | None) -> np.ndarray:
  """Returns float[T, n]."""
  if part == EMBEDDINGS:
    assert embeddings is not None
    return embeddings.episode(episode)
  if part == STATE:
    return data.state[::every]
  return actions_of(data)[::every]
