"""Normalization statistics of states and of action chunks, as openpi keeps them: mean, std, q01 and q99."""

import numpy as np

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots.normalize import NormStats

LOW_QUANTILE, HIGH_QUANTILE = 0.01, 0.99


def vector_statistics(values) -> NormStats:
  """Returns the statistics over all axes but the last; the deviation is the population's, as in openpi.

  Args:
    values: float[..., n], at least one row, finite.
  """
  values = np.asarray(values)
  rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
  if rows.shape[0] == 0 or not np.isfinite(rows).all():
    raise Pi0RagError(f"statistics need finite rows, got shape {values.shape} with non-finite or no entries")
  low, high = np.quantile(rows, [LOW_QUANTILE, HIGH_QUANTILE], axis=0)
  as_float32 = [np.asarray(x, np.float32) for x in (rows.mean(0), rows.std(0), low, high)]
  return NormStats(*as_float32)


def dataset_statistics(state_FP, action_chunks_FTA) -> dict[str, NormStats]:
  """Returns openpi's dict of statistics: `state`, and `actions` over every step of every label chunk."""
  return {"state": vector_statistics(state_FP), "actions": vector_statistics(action_chunks_FTA)}
