"""LeRobot data sets of ours: read back as they were given, and laid out like those of lerobot's own writer."""

import dataclasses
import json
import os
import pathlib

import numpy as np
import pyarrow.parquet as parquet
import pytest

from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.data.lerobot_writer import PICTURES, LerobotWriter, WrittenEpisode
from pi0rag_jax.errors import Pi0RagError


def episode(number, frames=6, *, cameras=("front", "wrist"), state_dim=8, actions=7, size=64):
  rng = np.random.default_rng(number)
  images = {}
  for shift, camera in enumerate(cameras):
    images[camera] = np.full((frames, size, size, 3), 40, np.uint8)
    for frame in range(frames):  # a bar that moves: a neighbour's picture shows
      images[camera][frame, :, 8 * ((frame + shift + number) % 8) : 8 * ((frame + shift + number) % 8) + 8] = 200
  return WrittenEpisode(images, rng.normal(size=(frames, state_dim)), rng.normal(size=(frames, actions)),
                        f"task {number % 2}", number != 1, {"executed": rng.normal(size=(frames, actions))})


@pytest.mark.parametrize("pictures", PICTURES)
def test_what_is_written_is_read_back(tmp_path, monkeypatch, pictures):
  monkeypatch.setattr("pi0rag_jax.data.lerobot_writer._ROWS_PER_FILE", 14)  # two episodes in the first files
  given = [episode(number, 5 + number) for number in range(4)]
  with LerobotWriter(tmp_path / "data", fps=20, robot="panda", pictures=pictures) as writer:
    for each in given:
      writer.add(each)
  dataset = open_dataset(tmp_path / "data")
  assert dataset.fps == 20 and len(list((tmp_path / "data" / "data").rglob("*.parquet"))) > 1
  for (number, data), each in zip(dataset.iterate(), given, strict=True):
    np.testing.assert_array_equal(data.state, np.float32(each.state))
    np.testing.assert_array_equal(data.actions, np.float32(each.actions))
    np.testing.assert_array_equal(data.extras["executed"], np.float32(each.extras["executed"]))
    assert set(data.prompts) == {each.prompt} and bool(data.extras["next.success"][-1]) == each.success
    shown = dataset.read_frames(number, range(len(each.state)))
    for camera, images in each.images.items():
      error = np.abs(shown[f"observation.images.{camera}"].astype(int) - images)
      assert error.max() == 0 if pictures == "images" else error.mean() < 6


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").exists(), reason="threads are told on Linux")
def test_an_encoder_is_not_put_before_everything_else(tmp_path):
  # SVT-AV1 does so where it runs as root; elsewhere there is nothing to take back.
  scheduled = lambda: {task.name: os.sched_getscheduler(int(task.name))  # noqa: E731
                       for task in pathlib.Path("/proc/self/task").iterdir()}
  before = scheduled()
  with LerobotWriter(tmp_path / "data", fps=20, robot="panda", pictures="video") as writer:
    writer.add(episode(0))
    assert all(policy == before.get(task, os.SCHED_OTHER) for task, policy in scheduled().items())


@pytest.mark.parametrize("pictures", PICTURES)
def test_the_layout_is_that_of_lerobots_own_writer(tmp_path, recorded, pictures):
  root, *_ = recorded("lerobot_v30" if pictures == "video" else "lerobot_v30_images")
  with LerobotWriter(tmp_path / "data", fps=10, robot="panda", pictures=pictures) as writer:
    for number in range(3):
      writer.add(episode(number))
  ours, theirs = (json.loads((folder / "meta" / "info.json").read_text()) for folder in (tmp_path / "data", root))
  assert ours.keys() == theirs.keys()
  for name in ("codebase_version", "data_path", "video_path", "chunks_size"):
    assert ours[name] == theirs[name]
  shared = theirs["features"].keys() - {"next.reward"}
  for name in shared:
    told, wanted = ours["features"][name], theirs["features"][name]
    assert told.keys() == wanted.keys() and told["dtype"] == wanted["dtype"] and told["shape"] == wanted["shape"]
    assert told.get("info", {}).keys() == wanted.get("info", {}).keys()
  for part, ignored in (("data", ("next.reward", "executed")), ("meta", ())):
    for path in sorted((root / part).rglob("*.parquet")):
      mine = parquet.read_schema(tmp_path / "data" / path.relative_to(root))
      for field in parquet.read_schema(path):
        if not any(name in field.name for name in ("next.reward", *ignored)):
          assert mine.field(field.name).type == field.type, field.name
      marks = (parquet.read_metadata(path).metadata or {}).keys()
      assert marks <= (parquet.read_metadata(tmp_path / "data" / path.relative_to(root)).metadata or {}).keys()
  stats = json.loads((tmp_path / "data" / "meta" / "stats.json").read_text())
  assert stats.keys() == ours["features"].keys() and np.shape(stats["observation.images.front"]["mean"]) == (3, 1, 1)
  assert stats["action"]["count"] == [18] and np.shape(stats["action"]["q99"]) == (7,)


@pytest.mark.parametrize(("changes", "message"), [
  ({"state": np.zeros((5, 8))}, "as many of each"),
  ({"prompt": " "}, "empty prompt"),
  ({"extras": {"executed": np.zeros(6)}}, r"executed of an episode have other shapes than \[F, N\]"),
  ({"prompt": "said once", "actions": np.zeros((6, 3))}, "unlike those before it in action"),
  ({"images": {"front": np.zeros((6, 64, 64, 3), np.float32)}}, "allowed: uint8"),
  ({"actions": np.zeros((6, 3))}, "unlike those before it in action"),
])
def test_what_does_not_fit_is_refused(tmp_path, changes, message):
  with LerobotWriter(tmp_path / "data", fps=10, robot="panda", pictures="images") as writer:
    writer.add(episode(0))
    with pytest.raises(Pi0RagError, match=message):
      writer.add(WrittenEpisode(**{**vars(episode(1)), **changes}))
  assert len(list(open_dataset(tmp_path / "data").iterate())) == 1
  assert parquet.read_table(tmp_path / "data" / "meta" / "tasks.parquet").num_rows == 1  # of episodes that are there
  with pytest.raises(Pi0RagError, match="holds a data set already"):
    LerobotWriter(tmp_path / "data", fps=10, robot="panda")


def test_an_empty_or_unknown_one_is_refused(tmp_path):
  with pytest.raises(Pi0RagError, match="no episode"):
    LerobotWriter(tmp_path / "data", fps=10, robot="panda").close()
  with pytest.raises(Pi0RagError, match="Did you mean 'video'"):
    LerobotWriter(tmp_path / "other", fps=10, robot="panda", pictures="vidio")


def test_a_data_set_is_whole_at_every_commit_and_goes_on(tmp_path):
  folder, made = tmp_path / "data", {"fps": 10, "robot": "panda", "pictures": "images", "append": True}
  writer = LerobotWriter(folder, **made)
  for number in range(2):
    writer.add(episode(number))
    writer.commit()
    assert len(list(open_dataset(folder).iterate())) == number + 1
  writer.add(episode(2))  # and is killed: its file is left
  writer = LerobotWriter(folder, **made)
  writer.add(dataclasses.replace(episode(3), told={"failure": "the server is gone"}))
  writer.commit()
  dataset = open_dataset(folder)
  assert [data.prompts[0] for _, data in dataset.iterate()] == ["task 0", "task 1", "task 1"] and not dataset.damaged
  np.testing.assert_array_equal(dataset.read_episode(2).state, np.float32(episode(3).state))
  table = parquet.read_table(folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
  assert table.column("failure").to_pylist() == [None, None, "the server is gone"]
  with pytest.raises(Pi0RagError, match="whose fps is 10, not 20"):
    LerobotWriter(folder, **made | {"fps": 20})
  with pytest.raises(Pi0RagError, match=r"unlike those before it in .*state"):
    LerobotWriter(folder, **made).add(episode(4, state_dim=3))
