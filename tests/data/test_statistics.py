"""Normalization statistics against values worked out by hand."""

import numpy as np
import pytest

from pi0rag_jax.data import statistics
from pi0rag_jax.errors import Pi0RagError


def test_hand_values():
  stats = statistics.vector_statistics(np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]]))
  np.testing.assert_allclose(stats.mean, [2.0, 1.0])
  np.testing.assert_allclose(stats.std, [np.sqrt(8 / 3), 0.0])  # of the population
  np.testing.assert_allclose(stats.q01, [0.04, 1.0])
  np.testing.assert_allclose(stats.q99, [3.96, 1.0], rtol=1e-6)


def test_actions_are_counted_over_every_step_of_every_chunk():
  chunks_FTA = np.arange(6, dtype=np.float32).reshape(2, 3, 1)
  stats = statistics.dataset_statistics(np.zeros((2, 4)), chunks_FTA)
  np.testing.assert_allclose(stats["actions"].mean, [2.5])
  assert stats["state"].mean.shape == (4,)


@pytest.mark.parametrize("values", [np.zeros((0, 2)), np.array([[np.nan, 0.0]])])
def test_no_rows_and_non_finite_rows_are_refused(values):
  with pytest.raises(Pi0RagError, match="finite rows"):
    statistics.vector_statistics(values)
