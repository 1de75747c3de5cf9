import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from train.head_windows import window_rows

EPISODE_F = [7, 7, 7, 3, 3]


def test_windows_and_chunks_stay_within_their_episode():
  made = window_rows(EPISODE_F, window=3, chunk=2)
  np.testing.assert_array_equal(made.history_FW, [[0, 0, 0], [0, 0, 1], [0, 1, 2], [3, 3, 3], [3, 3, 4]])
  np.testing.assert_array_equal(
    made.history_mask_FW, [[0, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1], [0, 1, 1]])
  np.testing.assert_array_equal(made.chunk_FT, [[0, 1], [1, 2], [2, 2], [3, 4], [4, 4]])
  np.testing.assert_array_equal(made.chunk_mask_FT, [[1, 1], [1, 1], [1, 0], [1, 1], [1, 0]])


def test_a_stride_skips_frames_of_the_history():
  made = window_rows([0] * 5, window=2, stride=2)
  np.testing.assert_array_equal(made.history_FW, [[0, 0], [0, 1], [0, 2], [1, 3], [2, 4]])
  np.testing.assert_array_equal(made.history_mask_FW[:, 0], [False, False, True, True, True])


def test_labels_are_every_steps_chunk():
  made = window_rows(EPISODE_F, window=2, chunk=2)
  actions_BWTA, mask_BWT = made.labels([2, 3], np.arange(5.0)[:, None])
  np.testing.assert_array_equal(actions_BWTA[..., 0], [[[1, 2], [2, 2]], [[3, 4], [3, 4]]])
  np.testing.assert_array_equal(mask_BWT, [[[1, 1], [1, 0]], [[1, 1], [1, 1]]])


def test_mixed_episodes_are_refused():
  with pytest.raises(Pi0RagError, match="not neighbours"):
    window_rows([1, 2, 1], window=2)
