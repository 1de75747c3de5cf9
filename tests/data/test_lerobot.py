"""LeRobot data sets of other codecs, rates, sizes and shardings than the recorded ones."""

import json
import sys

import numpy as np
import pytest

from pi0rag_jax.data import formats
from pi0rag_jax.data.video import VideoFile
from pi0rag_jax.errors import Pi0RagError

LENGTHS = [20, 33, 7, 26, 12]


@pytest.mark.parametrize("settings", [
  {"options": {"bf": "3", "g": "12"}, "fps": 30},
  # A key frame that frames shown after it do not start from.
  {"options": {"x264-params": "open-gop=1:keyint=8:min-keyint=8:bframes=3"}, "fps": 50, "size": (96, 128)},
  {"options": {"bf": "0", "g": "2"}, "fps": 29.97, "videos": 3, "data": 1},
  {"codec": "libsvtav1", "options": {"preset": "12", "g": "30", "svtav1-params": "enable-stat-report=0"}, "fps": 15},
], ids=["b_frames", "open_gop", "29.97", "av1"])
def test_every_frame_at_its_index(settings, tmp_path, write_lerobot, barcode):
  truth = write_lerobot(tmp_path / "set", LENGTHS, first=3, **settings)
  dataset = formats.open_dataset(tmp_path / "set")
  rng = np.random.default_rng(0)
  for _ in range(30):
    episode = int(rng.integers(len(LENGTHS)))
    indices = rng.integers(LENGTHS[episode], size=2)
    frames = dataset.read_frames(episode, indices)["observation.images.top"]
    assert [barcode(frame) for frame in frames] == indices.tolist()
  for episode, (state_F, actions_FA) in enumerate(truth):
    data = dataset.read_episode(episode)
    np.testing.assert_array_equal(data.state[:, 0], state_F)
    np.testing.assert_array_equal(data.actions, actions_FA)
    assert [barcode(frame) for frame in data.images["observation.images.top"]] == list(range(LENGTHS[episode]))
    assert data.metadata["episode_index"] == 3 + episode


def test_the_task_can_change_within_an_episode(tmp_path, write_lerobot):
  write_lerobot(tmp_path / "set", [12])
  prompts = formats.open_dataset(tmp_path / "set").read_episode(0, images=False).prompts
  assert prompts == ["first"] * 5 + ["second"] * 5 + ["first"] * 2


def test_frames_that_follow_one_another_are_decoded_without_seeking(tmp_path, write_lerobot, monkeypatch):
  write_lerobot(tmp_path / "set", [20])
  file = VideoFile(next((tmp_path / "set").rglob("*.mp4")))
  seeks, seek = [], file._seek
  monkeypatch.setattr(file, "_seek", lambda row: (seeks.append(row), seek(row)))
  for row in range(20):
    file.frames(np.asarray([row]))
  assert seeks == [0]


def test_a_time_without_a_frame_is_refused(tmp_path, write_lerobot):
  write_lerobot(tmp_path / "set", [20])
  file = VideoFile(next((tmp_path / "set").rglob("*.mp4")))
  with pytest.raises(ValueError, match=r"no frame at 2.500 s: the video has 20 from 0.000 to 1.900 s"):
    file.rows_at(np.asarray([0.1, 2.5]), 10)


def test_versions_and_folders_that_are_not_read_are_named(tmp_path, write_lerobot):
  write_lerobot(tmp_path / "set", [8])
  file = tmp_path / "set" / "meta" / "info.json"
  info = json.loads(file.read_text())
  file.write_text(json.dumps(info | {"codebase_version": "v1.6"}))
  with pytest.raises(Pi0RagError, match=r"of version v1.6; read are v2.0, v2.1, v3.0"):
    formats.open_dataset(tmp_path / "set")
  file.write_text(json.dumps(info | {"total_episodes": 9}))
  with pytest.raises(Pi0RagError, match=r"lists 1 episodes, info.json says 9"):
    formats.open_dataset(tmp_path / "set")
  assert formats.open_dataset(tmp_path / "set", skip_bad=True).num_episodes == 1
  del info["fps"]
  file.write_text(json.dumps(info))
  with pytest.raises(Pi0RagError, match=r"info.json': fps is missing"):
    formats.open_dataset(tmp_path / "set")


def test_a_missing_package_names_the_extra(recorded, monkeypatch):
  monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
  with pytest.raises(Pi0RagError, match=r"install the extra data, pip install 'pi0rag-jax\[data\]'"):
    formats.open_dataset(recorded("lerobot_v30")[0])
