"""Whether other demonstrations, where things looked alike, did the same: scores of demonstrations without any rollout.

What one demonstrator does where nobody else does it is a detour, a stop or a miss, and a policy that learns it does it
sometimes. Who looked at things alike is told by the nearest frames of other episodes, among prefix embeddings as in the
policy's memory; what they agree on is the median of what they did next.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import faiss
import numpy as np

from pi0rag_jax.curation.inputs import Episodes, actions_of
from pi0rag_jax.curation.training import input_scale
from pi0rag_jax.data.dataset import Dataset
from pi0rag_jax.errors import Pi0RagError

# Frames that are compared together.
BATCH = 512
# Frames among which neighbours are searched for, drawn evenly; the search of all frames grows with their product.
MOST_REFERENCES = 200_000


@dataclasses.dataclass(frozen=True)
class AgreementConfig:
  """How frames are compared."""

  neighbours: int = 32  # of other episodes
  horizon: int = 16  # frames of action that are compared

  def __post_init__(self):
    if min(self.neighbours, self.horizon) < 1:
      raise Pi0RagError(f"agreement: neighbours {self.neighbours}, horizon {self.horizon}; allowed: whole numbers "
                        "from 1")


def episode_scores(episodes: Episodes, chunks: Sequence[np.ndarray], config: AgreementConfig) -> np.ndarray:
  """Returns float64[J] in (0, 1]: e to the minus mean distance of what was done from what others did.

  The distance of a frame is the root mean square over its chunk, each action entry in units of its deviation.

  Args:
    episodes: of J; what is alike, T rows each, standardized here.
    chunks: float32[T, H, A] of each episode, see `chunks_of`.
    config: see AgreementConfig.
  Raises:
    Pi0RagError: there are too few episodes to have neighbours in.
  """
  lengths = [len(values) for values in episodes.values]
  assert lengths == [len(each) for each in chunks], "a chunk for each row"
  if len(lengths) < 2:
    raise Pi0RagError(f"{len(lengths)} demonstrations: whether they agree takes two or more")
  episode_N = np.repeat(np.arange(len(lengths)), lengths)
  keys_NF = np.ascontiguousarray(_standardized(np.concatenate(episodes.values)), np.float32)
  actions_ND = _standardized(np.concatenate([each.reshape(len(each), -1) for each in chunks]))
  distance_N = np.concatenate([
    np.sqrt(np.square(actions_ND[rows] - agreed).mean(axis=-1))
    for rows, agreed in _agreed(keys_NF, actions_ND, episode_N, config.neighbours)])
  return np.exp(-np.bincount(episode_N, distance_N) / np.array(lengths))


def chunks_of(dataset: Dataset, *, every: int, horizon: int) -> list[np.ndarray]:
  """Returns float32[T, H, A] of each episode: what was done from the frames 0, every, ... on; the last action stays."""
  found = []
  for episode in range(dataset.num_episodes):
    actions_FA = actions_of(dataset.read_episode(episode, images=False))
    frames_TH = np.arange(0, len(actions_FA), every)[:, None] + np.arange(horizon)
    found.append(actions_FA[np.minimum(frames_TH, len(actions_FA) - 1)])
  return found


def _agreed(keys_NF: np.ndarray, actions_ND: np.ndarray, episode_N: np.ndarray, neighbours: int
            ) -> Iterator[tuple[slice, np.ndarray]]:
  """Yields (rows, float32[B, D]): the median of what the nearest frames of other episodes did."""
  step = -(-len(keys_NF) // MOST_REFERENCES)
  references_R = np.arange(0, len(keys_NF), step)
  index = faiss.IndexFlatL2(keys_NF.shape[1])
  index.add(keys_NF[references_R])
  # As many more as the frame's own episode may take the places of.
  own = int(np.bincount(episode_N[references_R]).max())
  count = min(neighbours + own, len(references_R))
  for first in range(0, len(keys_NF), BATCH):
    rows = slice(first, min(first + BATCH, len(keys_NF)))
    _, found_BK = index.search(keys_NF[rows], count)
    found_BK = references_R[found_BK]
    others_BK = episode_N[found_BK] != episode_N[rows, None]
    others_BK &= np.cumsum(others_BK, axis=1) <= neighbours
    # Of those that count first, in the order of their distance; where there are fewer, the rest is left out.
    order_BK = np.argsort(~others_BK, axis=1, kind="stable")[:, :neighbours]
    actions_BKD = actions_ND[np.take_along_axis(found_BK, order_BK, axis=1)]
    actions_BKD[~np.take_along_axis(others_BK, order_BK, axis=1)] = np.nan
    yield rows, np.nanmedian(actions_BKD, axis=1)


def _standardized(values_NF: np.ndarray) -> np.ndarray:
  mean_F, std_F = input_scale(values_NF, centred=True)
  return ((values_NF - mean_F) / std_F).astype(np.float32)
