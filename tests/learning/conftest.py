"""Decisions made by hand."""

import numpy as np
import pytest

from pi0rag_jax.worlds.episode import Step


@pytest.fixture
def make_steps():
  """Returns a function that makes one step per entry, whose chunk moves so many metres a tick along y."""

  def make(sideways_m):
    found = []
    for i, dy in enumerate(sideways_m):
      chunk = np.zeros((16, 5), np.float32)
      chunk[:, 1] = dy
      key, ids = np.full(3, i, np.float32), np.array([i, -1])
      found.append(Step(4 * i, f"moment {i}", key, chunk, chunk, 1, ids, np.array([0.5, 0.0])))
    return found

  return make
