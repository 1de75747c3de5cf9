"""Baselines: lengths and paces by hand."""

import judged
import numpy as np
import pytest

from pi0rag_jax.curation import baselines


def test_a_pace_is_the_median_of_what_moves():
  position_F1 = np.array([[0.0], [0.1], [0.1], [0.4], [0.40004], [0.9]])
  assert baselines.pace(position_F1, 10.0) == pytest.approx(3.0)  # of 1, 0, 3, 0.0004 and 5 a second
  assert baselines.pace(position_F1[:, :1] * 0, 10.0) == 0.0 and baselines.pace(position_F1[:1], 10.0) == 0.0


def test_lengths_and_paces_of_the_tool_and_of_the_first_frames(tmp_path):
  steps_FP = np.cumsum([[0.0, 1.0, 9.0]] * 4, axis=0).astype(np.float32)
  dataset = judged.write(tmp_path, 1, state=steps_FP)
  found = baselines.scores(dataset, tool_dims=(0, 1))
  assert found[baselines.LENGTH_ONLY].tolist() == [4] and found[baselines.PACE_ONLY].tolist() == [20.0]
  whole = baselines.scores(dataset, frames=3)
  assert whole[baselines.LENGTH_ONLY].tolist() == [3]
  assert whole[baselines.PACE_ONLY] == pytest.approx(20 * np.sqrt(82), rel=1e-6)
