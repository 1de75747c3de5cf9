"""The nearest steps of other episodes: what agreement, duplicates and outcomes are told by."""

from collections.abc import Iterator

import faiss
import numpy as np

from pi0rag_jax.curation.training import input_scale

# Steps that are compared together.
BATCH = 512
# Steps among which neighbours are searched for, drawn evenly; the search of all grows with their product.
MOST_REFERENCES = 200_000


def standardized(values_NF: np.ndarray, scale: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
  """Returns float32[N, F] of mean 0 and deviation 1, or in another set's (mean, deviation)."""
  mean_F, std_F = scale or input_scale(values_NF, centred=True)
  return np.ascontiguousarray((values_NF - mean_F) / std_F, np.float32)


def nearest(keys_NF: np.ndarray, episode_N: np.ndarray, count: int, *, references_RF: np.ndarray | None = None
            ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
  """Yields (rows, int64[B, K] the nearest references, bool[B, K] those that are there) of steps, BATCH at a time.

  Args:
    keys_NF: float32, of the steps that ask.
    episode_N: of each; a step of the own episode is no neighbour.
    count: K.
    references_RF: float32, of other episodes altogether; None: the steps themselves.
  """
  own = references_RF is None
  step = -(-len(keys_NF if own else references_RF) // MOST_REFERENCES)
  references_R = np.arange(0, len(keys_NF if own else references_RF), step)
  index = faiss.IndexFlatL2(keys_NF.shape[1])
  index.add((keys_NF if own else references_RF)[references_R])
  # As many more as the step's own episode may take the places of.
  more = int(np.bincount(episode_N[references_R]).max()) if own else 0
  asked = min(count + more, len(references_R))
  for first in range(0, len(keys_NF), BATCH):
    rows = slice(first, min(first + BATCH, len(keys_NF)))
    _, found_BK = index.search(keys_NF[rows], asked)
    found_BK = references_R[found_BK]
    others_BK = episode_N[found_BK] != episode_N[rows, None] if own else np.ones(found_BK.shape, bool)
    others_BK &= np.cumsum(others_BK, axis=1) <= count
    # Of those that count first, in the order of their distance; where there are fewer, the rest is left out.
    order_BK = np.argsort(~others_BK, axis=1, kind="stable")[:, :count]
    yield rows, np.take_along_axis(found_BK, order_BK, axis=1), np.take_along_axis(others_BK, order_BK, axis=1)
