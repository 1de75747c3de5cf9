"""The synthetic data set: readable, learnable, the same everywhere, and written all or nothing."""

import numpy as np
import pytest

from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.data.validation import Schema, dataset_problems
from train import debug_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return debug_data.resolve("debug", tmp_path_factory.mktemp("workdir"))


def test_it_is_a_valid_data_set_of_the_projects_format(folder):
  dataset = open_dataset(folder)
  assert (dataset.format, dataset.num_episodes, dataset.num_frames) == ("episodes", 12, 480)
  assert (dataset.cameras, dataset.state_dim, dataset.action_dim) == (("front", "wrist"), 8, 7)
  schema = Schema.load(folder)
  assert schema is not None
  assert [dataset_problems(dataset, episode, schema) for episode in range(12)] == [[]] * 12
  assert {data.prompts[0] for _, data in dataset.iterate()} == set(debug_data.HEIGHTS)
  grippers = np.concatenate([data.actions[:, -1] for _, data in dataset.iterate()])
  assert set(grippers.tolist()) == {0.0, 1.0} and 0.2 < grippers.mean() < 0.8


def test_pictures_prompt_and_state_decide_the_actions(folder):
  dataset = open_dataset(folder)
  for _, data in dataset.iterate(images=True):
    bright_FHW = data.images["front"].mean(axis=-1) > 130
    span = debug_data.PIXELS - debug_data.SQUARE_PX
    for axis in (0, 1):  # x is along the width, y down the height
      first_F = bright_FHW.any(axis=1 + axis).argmax(axis=1)
      square_F = 2 * first_F / span - 1
      np.testing.assert_allclose(data.actions[:, axis], square_F - data.state[:, axis], atol=0.15)
    height = debug_data.HEIGHTS[data.prompts[0]]
    np.testing.assert_allclose(data.actions[:, 2], height - data.state[:, 2], atol=0.1)
    np.testing.assert_allclose(data.actions[:, 3:6], -data.state[:, 3:6], atol=0.1)
    share_bright_F = (data.images["wrist"].mean(axis=-1) > 130).mean(axis=(1, 2))
    middle = ((debug_data.SMALLEST_PX + debug_data.LARGEST_PX) / 2 / debug_data.PIXELS) ** 2
    clear_F = abs(share_bright_F - middle) > 0.05
    np.testing.assert_array_equal(data.actions[clear_F, -1], share_bright_F[clear_F] < middle)


def test_it_is_made_once_and_the_same_everywhere(folder, tmp_path):
  files = sorted(folder.iterdir())
  times = [file.stat().st_mtime_ns for file in files]
  assert debug_data.make(folder) == folder
  assert [file.stat().st_mtime_ns for file in sorted(folder.iterdir())] == times
  other = debug_data.make(tmp_path / "other")
  assert [(f.name, f.read_bytes()) for f in sorted(other.iterdir())] == [(f.name, f.read_bytes()) for f in files]
  assert list(tmp_path.iterdir()) == [other]
  assert debug_data.resolve("data/mine", tmp_path).as_posix() == "data/mine"


def test_a_stopped_writing_leaves_nothing(tmp_path, monkeypatch):
  def stop(writer, number):
    raise KeyboardInterrupt

  monkeypatch.setattr(debug_data, "write_episode", stop)
  with pytest.raises(KeyboardInterrupt):
    debug_data.make(tmp_path / "data")
  assert not list(tmp_path.iterdir())
