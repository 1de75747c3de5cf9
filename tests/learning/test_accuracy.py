"""How right predictions are: counted by hand."""

import math

import h5py
import numpy as np
import pytest

from pi0rag_jax.data.episodes import FORMAT_NAME
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import accuracy
from pi0rag_jax.robots.robot import ActionSpace

SPACE = ActionSpace((False, False), (1.0, 1.0), (-1.0, -math.inf), (1.0, math.inf))
FRAMES = 4


@pytest.fixture
def dataset(tmp_path):
  path = tmp_path / "a.hdf5"
  with h5py.File(path, "w") as file:
    file.attrs.update({"format": FORMAT_NAME, "version": 2})
    for episode in range(2):
      group = file.create_group(f"episode_{episode}")
      group.attrs.update({"prompt": "go", "fps": 10.0, "success": True})
      group["state"] = np.zeros((FRAMES, 1), np.float32)
      group["actions"] = np.array([[0.0, 0.0], [0.0, 5.0], [0.0, 10.0], [0.0, 10.0]], np.float32)
      group["image/front"] = np.zeros((FRAMES, 4, 4, 3), np.uint8)
  return open_dataset(path)


def predicted(folder, episode, actions_NTA):
  folder.mkdir(exist_ok=True)
  np.savez(folder / f"episode_{episode:06d}.npz", frames=np.array([0, 2]), actions=np.asarray(actions_NTA, np.float32))


def test_a_step_is_right_within_a_share_of_each_entrys_range(dataset, tmp_path):
  # Tolerances: a tenth of 2, and of the 10 that the recorded actions span. The chunks' third step is not looked at.
  right = [[[0.1, 0.9], [-0.15, 5.9], [9, 9]], [[0.0, 10.0], [0.0, 9.1], [9, 9]]]
  predicted(tmp_path / "p", 0, right)
  found = accuracy.measure(tmp_path / "p", dataset, SPACE, steps=2)
  assert (found.episodes, found.steps, found.right, found.entries) == (1, 4, 1.0, (1.0, 1.0))
  np.testing.assert_allclose(found.tolerance, (0.2, 1.0), rtol=1e-6)
  wrong = [[[0.3, 0.9], [-0.15, 6.9], [9, 9]], [[0.0, 10.0], [0.0, 9.1], [9, 9]]]
  predicted(tmp_path / "p", 1, wrong)
  found = accuracy.measure(tmp_path / "p", dataset, SPACE, steps=2)
  assert (found.episodes, found.steps, found.right) == (2, 8, 6 / 8)
  assert (found.first, found.entries) == (3 / 4, (7 / 8, 7 / 8))
  assert found.interval_95[0] < found.right < found.interval_95[1]


def test_steps_beyond_the_end_do_not_count(dataset, tmp_path):
  predicted(tmp_path / "p", 0, np.full((2, 4, 2), 99.0))
  assert accuracy.measure(tmp_path / "p", dataset, SPACE, steps=4).steps == 6  # of the frames 0 to 3, and 2 to 3


def test_without_predictions_there_is_nothing_to_measure(dataset, tmp_path):
  with pytest.raises(Pi0RagError, match="has no predictions of"):
    accuracy.measure(tmp_path, dataset, SPACE, steps=1)
