"""What the steps are fed: hidden state entries, emphasis, normalized targets."""

import numpy as np
import pytest
import tiny

from pi0rag_jax.data import pipeline
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots import normalize
from train import batches


def _frames(**changes):
  return pipeline.join_episodes([tiny.make_episode(0, frames=4, **changes)])


def test_hidden_entries_are_zero_to_the_network_and_the_others_are_standardized():
  frames = _frames()
  stats = batches.compute_statistics(frames, np.arange(4), ("goal_position",), hidden_state_dims=(6, 9))
  state = normalize.normalize(frames.state, stats["state"])
  assert np.abs(state[:, [6, 9]]).max() < 1e-5
  np.testing.assert_allclose(state[:, [5, 7, 8]].std(axis=0), 1.0, rtol=1e-3)
  assert stats["targets"].mean.shape == (2,)
  with pytest.raises(Pi0RagError, match=r"hidden_state_dims \[10\]: the state has entries 0..9"):
    batches.compute_statistics(frames, np.arange(4), ("goal_position",), hidden_state_dims=(10,))


def test_approaches_are_shown_more_often():
  chunks = np.zeros((4, tiny.HORIZON, 5), np.float32)
  chunks[[1, 2], :, 0] = 0.012
  privileged = {"grasped": np.array([0, 0, 1, 1], np.float32)}
  frames = _frames(action_chunks=chunks, privileged=privileged)
  assert batches.emphasized_rows(frames, np.arange(4), 2).tolist() == [0, 1, 2, 3, 1, 1]
  assert batches.emphasized_rows(frames, np.arange(4), 0).tolist() == [0, 1, 2, 3]
  assert batches.emphasized_rows(frames, np.array([0, 2]), 2).tolist() == [0, 2]
  turns = np.zeros((4, tiny.HORIZON, 5), np.float32)
  turns[[0, 3], :, 3] = [[-0.05], [0.05]]  # the second one with the object in hand
  frames = _frames(action_chunks=turns, privileged=privileged)
  assert batches.emphasized_rows(frames, np.arange(4), 1).tolist() == [0, 1, 2, 3, 0]
  with pytest.raises(Pi0RagError, match="needs the privileged array 'grasped'"):
    batches.emphasized_rows(_frames(privileged={"yaw": np.zeros(4, np.float32)}), np.arange(4), 1)
