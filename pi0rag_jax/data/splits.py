"""Training, validation and test episodes, drawn once and kept in a file beside the data."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pi0rag_jax import files
from pi0rag_jax.data import checks
from pi0rag_jax.data.dataset import expanded
from pi0rag_jax.errors import Pi0RagError, unknown_name

SPLITS = ("train", "validation", "test")
FRACTIONS = (0.8, 0.1, 0.1)
FILE_NAME = "splits.json"


def split_episodes(
  num_episodes: int, *, fractions: Sequence[float] = FRACTIONS, seed: int = 0
) -> dict[str, list[int]]:
  """Returns {train, validation, test: episodes}, disjoint, each sorted; every part above 0 gets one episode at least.

  Args:
    num_episodes: of the data set.
    fractions: of the three parts; they sum to 1.
    seed: of the draw.
  """
  shares = np.asarray(fractions, float)
  if shares.shape != (3,) or (shares < 0).any() or abs(shares.sum() - 1) > 1e-6:
    raise Pi0RagError(f"a split needs three fractions that sum to 1, got {list(fractions)}")
  if num_episodes < (shares > 0).sum():
    raise Pi0RagError(f"{num_episodes} episodes cannot be split into {(shares > 0).sum()} parts: record more")
  counts = np.floor(shares * num_episodes + 1e-9).astype(int)
  counts = np.maximum(counts, shares > 0)
  while counts.sum() != num_episodes:
    counts[int(np.argmax(counts))] += np.sign(num_episodes - counts.sum())
  order = np.random.default_rng(seed).permutation(num_episodes)
  parts = np.split(order, np.cumsum(counts)[:-1])
  return {name: sorted(part.tolist()) for name, part in zip(SPLITS, parts)}


def save_splits(path: str | Path, splits: Mapping[str, Sequence[int]], *, num_episodes: int) -> None:
  """Writes the parts; the file is replaced atomically."""
  try:
    files.write_json(expanded(path), {"num_episodes": num_episodes, "splits": splits})
  except OSError as error:
    raise Pi0RagError(f"cannot write '{path}' ({error.strerror}): choose another place") from error


def load_split(path: str | Path, name: str, *, num_episodes: int) -> list[int]:
  """Returns the episodes of one part.

  Args:
    path: the file, or the folder that holds `splits.json`.
    name: train, validation or test.
    num_episodes: of the data set, which must be those that were split.
  """
  path = expanded(path)
  path = path / FILE_NAME if path.is_dir() else path
  try:
    stored = checks.mapping(checks.read_json(path), f"'{path}'")
    total = checks.integer(stored.get("num_episodes"), f"'{path}': num_episodes")
    splits = {
      part: [checks.integer(e, f"'{path}': {part}", high=total - 1) for e in episodes]
      for part, episodes in checks.mapping(stored.get("splits"), f"'{path}': splits").items()}
  except (Pi0RagError, TypeError) as error:
    raise Pi0RagError(f"no splits in '{path}' ({error}): make them with python -m pi0rag_jax.data split") from error
  if name not in splits:
    raise unknown_name("split", name, splits)
  if total != num_episodes:
    raise Pi0RagError(f"'{path}' splits {total} episodes, the data set has {num_episodes}: split it again")
  return splits[name]
