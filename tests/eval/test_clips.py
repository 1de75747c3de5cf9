"""Clips: which seeds are shown, and the file that keeps them."""

import numpy as np
import pytest

from eval import clips


def test_mended_seeds_are_shown_and_one_broken_one():
  without = {1: "failure", 2: "failure", 3: "success", 4: "success", 5: "failure"}
  with_memory = {1: "success", 2: "success", 3: "failure", 4: "success", 5: "crashed"}
  assert clips.choose(without, with_memory, 2) == [1, 3]
  assert clips.choose(without, with_memory, 1) == [1]
  assert clips.choose(without, without, 3) == []


def test_clips_come_back_as_they_were(clip, tmp_path):
  path = tmp_path / "clips" / "place-camera_shift.npz"
  clips.save(path, [3, 8], [clip, {**clip, "seed": 8}])
  first, second = clips.load(path, [3, 8])
  assert second["seed"] == 8 and first.keys() == clip.keys()
  for name, value in clip.items():
    assert type(first[name]) is type(value), name
    np.testing.assert_array_equal(first[name], value)
  assert list(path.parent.iterdir()) == [path]


def test_no_clips_are_an_answer_too(tmp_path):
  path = tmp_path / "all_crashed.npz"
  clips.save(path, [3], [])
  assert clips.load(path, [3]) == []


def test_other_seeds_and_missing_files_are_filmed(clip, tmp_path):
  path = tmp_path / "clips.npz"
  assert clips.load(path, [3]) is None
  clips.save(path, [3], [clip])
  assert clips.load(path, [3, 4]) is None


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_damaged_file_is_filmed_again(clip, tmp_path, kept):
  path = tmp_path / "clips.npz"
  clips.save(path, [3], [clip])
  path.write_bytes(path.read_bytes()[:kept])
  assert clips.load(path, [3]) is None
