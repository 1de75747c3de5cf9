"""What was said of demonstrations when they were recorded: clean, or which flaw they have."""

import math
from collections.abc import Sequence

import numpy as np

from pi0rag_jax.data.dataset import Dataset
from pi0rag_jax.data.episodes import CLEAN

ALL_FLAWS = "all flaws"


def flaws_of(dataset: Dataset) -> list[str]:
  """Returns each episode's flaw, CLEAN where it has none; '' where nobody judged it or it cannot be read."""
  found = [""] * dataset.num_episodes
  for episode, data in dataset.iterate():
    found[episode] = str(data.metadata.get("flaw", ""))
  return found


def clean(flaws: Sequence[str]) -> np.ndarray:
  """Returns float64[J]: 1 for a demonstration that was judged clean, 0 for a flawed one, nan where nobody judged."""
  return np.array([float(flaw == CLEAN) if flaw else math.nan for flaw in flaws])


def comparisons(flaws: Sequence[str]) -> dict[str, np.ndarray]:
  """Returns what clean demonstrations are told apart from: all flawed ones, then those of each flaw.

  As float64[J]: 1 for a clean one, 0 for one of those, nan for the others.
  """
  clean_J, kinds = clean(flaws), sorted({*flaws} - {"", CLEAN})
  return {ALL_FLAWS: clean_J,
          **{kind: np.where([flaw in (kind, CLEAN) for flaw in flaws], clean_J, math.nan) for kind in kinds}}
