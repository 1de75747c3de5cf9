"""Recording: only valid frames and whole episodes; the Mobile-VLA plan; the command line over what was recorded."""

import json

import h5py
import numpy as np
import pytest

from pi0rag_jax.data import __main__ as command
from pi0rag_jax.data import episodes, formats, recorder, splits
from pi0rag_jax.data.dataset import Fields
from pi0rag_jax.data.mobile_vla import mobile_vla_schema
from pi0rag_jax.data.validation import Schema
from pi0rag_jax.errors import Pi0RagError

SCHEMA = Schema({"front": (8, 12)}, state_dim=3, action_dim=2, fps=10.0)


def frame(**changes):
  fields = {"images": {"front": np.full((8, 12, 3), 7, np.uint8)}, "state": [0.0, 1.0, 2.0], "action": [0.5, 0.5],
            "time_s": 0.0}
  return fields | changes


def record(folder, count=3, *, schema=SCHEMA, frames=4, **attributes):
  writer = recorder.EpisodeWriter(folder, schema)
  for number in range(count):
    for t in range(frames):
      images = {name: np.full((*size, 3), t, np.uint8) for name, size in schema.cameras.items()}
      writer.add_frame(images=images, state=np.full(schema.state_dim, number), action=np.full(schema.action_dim, t),
                       time_s=100 + t / 10)
    writer.save(**({"prompt": "go", "success": number % 2 == 0} | attributes))
  return folder


def test_what_is_recorded_is_read(tmp_path):
  dataset = formats.open_dataset(record(tmp_path / "set", metadata={"operator": "ada"}))
  data = dataset.read_episode(1)
  assert (dataset.lengths.tolist(), dataset.fps, dataset.cameras) == ([4, 4, 4], 10.0, ("front",))
  np.testing.assert_allclose(data.timestamps, [100.0, 100.1, 100.2, 100.3])
  assert data.images["front"][:, 0, 0, 0].tolist() == data.actions[:, 0].tolist() == [0, 1, 2, 3]
  assert (data.prompts[0], data.metadata["operator"], data.metadata["success"]) == ("go", "ada", False)
  with pytest.raises(Pi0RagError, match=r"read them with data.formats.open_dataset"):
    list(episodes.read_episodes(tmp_path / "set" / "episode_000000.h5"))


@pytest.mark.parametrize("changes, message", [
  ({"images": {}}, r"cameras are \[\], expected \['front'\]"),
  ({"images": {"front": np.zeros((3, 8, 12), np.uint8)}}, r"uint8\[3, 8, 12\], expected uint8\[8, 12, 3\]"),
  ({"images": {"front": np.zeros((8, 12, 3))}}, r"float64\[8, 12, 3\]"),
  ({"state": [0.0]}, "state has 1 dims, expected 3"),
  ({"action": [0.0, np.nan]}, "actions is not finite"),
  ({"time_s": -1.0}, "the time does not rise at frame 1: 0 s, then -1 s"),
  ({"time_s": float("nan")}, "the time is not finite"),
])
def test_frames_that_do_not_fit_are_refused_and_the_episode_goes_on(changes, message, tmp_path):
  writer = recorder.EpisodeWriter(tmp_path, SCHEMA)
  writer.add_frame(**frame())
  with pytest.raises(Pi0RagError, match=rf"frame 1 is refused: .*{message}"):
    writer.add_frame(**frame(**({"time_s": 0.1} | changes)))
  writer.add_frame(**frame(time_s=0.1))
  writer.save(prompt="go")
  assert formats.open_dataset(tmp_path).lengths.tolist() == [2]


def test_episodes_need_language_frames_and_a_category(tmp_path):
  schema = mobile_vla_schema(cameras={"front": (8, 12)}, arm_joints=6)
  writer = recorder.EpisodeWriter(tmp_path, schema)
  with pytest.raises(Pi0RagError, match=r"no frames to save"):
    writer.save(prompt="go")
  writer.add_frame(**frame(state=np.zeros(10), action=np.zeros(9)))
  with pytest.raises(Pi0RagError, match=r"the category is None, expected one of combined, manipulation, navigation; "
                                        "the language is empty"):
    writer.save(prompt=" ")
  assert writer.save(prompt="drive", category="navigation").name == "episode_000000.h5"
  with pytest.raises(Pi0RagError, match=r"another schema"):
    recorder.EpisodeWriter(tmp_path, SCHEMA)


def test_two_writers_take_different_numbers_and_nothing_half_written_stays(tmp_path, monkeypatch):
  first, second = recorder.EpisodeWriter(tmp_path, SCHEMA), recorder.EpisodeWriter(tmp_path, SCHEMA)
  for writer in (first, second):
    writer.add_frame(**frame())
  write = first._write_group

  def while_the_other_saves(group, attributes):
    if len(second):
      second.save(prompt="second")
    write(group, attributes)

  monkeypatch.setattr(first, "_write_group", while_the_other_saves)
  assert first.save(prompt="first").name == "episode_000001.h5"
  prompts = [d.prompts[0] for _, d in formats.open_dataset(tmp_path).iterate()]
  assert prompts == ["second", "first"]
  assert not list(tmp_path.glob("*.tmp*"))


def test_the_plan_of_mobile_vla():
  schema = mobile_vla_schema()
  assert schema.planned() == {"navigation": 400, "manipulation": 300, "combined": 300}
  assert sum(mobile_vla_schema(episodes=7).planned().values()) == 7
  assert (schema.state_dim, schema.action_dim) == (11, 10)


def test_validate_finds_what_is_wrong_with_stored_episodes(tmp_path, capsys):
  folder = record(tmp_path / "set")
  assert command.main(["validate", str(folder)]) == 0
  assert capsys.readouterr().out == "3 episodes, 0 not valid, 0 that cannot be read\n"
  with h5py.File(folder / "episode_000001.h5", "a") as file:
    group = file["episode_000001"]
    group["timestamps"][2] = 0.0
    group["state"][1] = np.nan
    group.attrs["prompt"] = ""
  (folder / "episode_000002.h5").write_bytes(b"nothing")
  assert command.main(["validate", str(folder)]) == 1
  out = capsys.readouterr().out
  for text in ("episode_000002.h5' cannot be read", "state is not finite in 1 frames, the first is 1",
               "the language is empty in 4 frames", "the time does not rise at frame 2: 100.1 s, then 0 s",
               "2 episodes, 1 not valid, 1 that cannot be read"):
    assert text in out


def test_summary_and_split(tmp_path, capsys):
  schema = mobile_vla_schema(cameras={"front": (8, 12)}, arm_joints=6, episodes=10)
  folder = record(tmp_path / "set", 5, schema=schema, category="navigation")
  assert command.main(["summary", str(folder), "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert (found["episodes"], found["frames"], found["cameras"]) == (5, 20, {"front": "8x12"})
  assert found["episodes_by_outcome"] == {"success": 3, "failure": 2}
  assert found["missing_by_category"] == {"navigation": 0, "manipulation": 3, "combined": 3}
  assert command.main(["summary", str(folder)]) == 0
  assert "episodes_by_prompt   go 5" in capsys.readouterr().out
  assert command.main(["split", str(folder), "--fractions", "0.6", "0.2", "0.2"]) == 0
  assert "train 3, validation 1, test 1 episodes" in capsys.readouterr().out
  assert len(splits.load_split(folder, "train", num_episodes=5)) == 3


def test_mistakes_end_in_one_line(tmp_path, capsys):
  assert command.main(["validate", str(tmp_path / "none")]) == 2
  assert capsys.readouterr().err == f"error: no data set at '{tmp_path / 'none'}'\n"
  assert command.main(["split", str(record(tmp_path / "set", 1))]) == 2
  assert "1 episodes cannot be split into 3 parts" in capsys.readouterr().err


def labelled(folder, frames=4, **ending):
  writer = recorder.EpisodeWriter(folder, SCHEMA)
  for t, by in zip(range(frames), ("policy", "human", "retry", "expert")):
    writer.add_frame(**frame(time_s=t / 10, action=[t, 0], label=[t, 1], by=by))
  writer.save(prompt="go", **ending)
  return folder


def test_labels_actors_and_endings_are_read_and_trained_on(tmp_path, capsys):
  folder = labelled(tmp_path / "set", failure="dropped", note="the lid was loose")
  data = formats.open_dataset(folder).read_episode(0)
  assert data.actions.tolist() == [[t, 0] for t in range(4)]
  assert data.extras["label"].tolist() == [[t, 1] for t in range(4)]
  assert data.extras["by"].tolist() == ["policy", "human", "retry", "expert"]
  assert [data.metadata[name] for name in ("success", "failure", "note")] == [False, "dropped", "the lid was loose"]
  clean = formats.open_dataset(folder, fields=Fields(actions="label"))
  assert clean.read_samples(np.zeros(1, int), np.ones(1, int), horizon=2)["actions"].tolist() == [[[1, 1], [2, 1]]]
  assert command.main(["validate", str(folder)]) == 0
  assert command.main(["summary", str(folder)]) == 0
  assert "episodes_by_failure  dropped 1" in capsys.readouterr().out
  with pytest.raises(Pi0RagError, match=r"unknown field for the actions 'label'"):
    formats.open_dataset(record(tmp_path / "plain"), fields=Fields(actions="label")).read_episode(0)


@pytest.mark.parametrize("changes, message", [
  ({"label": [0.0]}, "label has 1 dims, expected 2"), ({"label": [0.0, np.nan]}, "label is not finite"),
  ({"label": None}, "a label comes with every frame or with none, the frames before have one"),
  ({"by": "robot"}, "who acted is robot, expected one of policy, human, expert, retry"),
])
def test_labels_and_actors_that_do_not_fit_are_refused(changes, message, tmp_path):
  writer = recorder.EpisodeWriter(tmp_path, SCHEMA)
  writer.add_frame(**frame(label=[0.0, 0.0]))
  with pytest.raises(Pi0RagError, match=rf"frame 1 is refused: .*{message}"):
    writer.add_frame(**(frame(time_s=0.1, label=[0.0, 0.0]) | changes))
  with pytest.raises(Pi0RagError, match=r"the episode is refused: a success has the kind of failure 'late'"):
    writer.save(prompt="go", success=True, failure="late")
  assert writer.save(prompt="go", success=True).exists()


def test_validation_looks_at_labels_and_endings(tmp_path, capsys):
  folder = labelled(tmp_path / "set")
  with h5py.File(next(folder.glob("*.h5")), "a") as file:
    group = file["episode_000000"]
    group["label"][2, 1] = np.inf
    group["by"][1] = b"ghost"
    group.attrs.update(success=True, failure="late", fps=25.0)
  assert command.main(["validate", str(folder)]) == 1
  out = capsys.readouterr().out
  for text in ("label is not finite in 1 frames, the first is 2", "who acted is ghost",
               "a success has the kind of failure", "it has 25 frames per second, expected 10"):
    assert text in out


def test_a_summary_gives_reasons_and_fails_where_nothing_can_be_read(tmp_path, capsys):
  folder = record(tmp_path / "set", 2)
  (folder / "episode_000001.h5").write_bytes(b"nothing")
  assert command.main(["summary", str(folder)]) == 0
  assert "episode_000001.h5' cannot be read: " in capsys.readouterr().out


@pytest.mark.parametrize("change, message", [
  ({"fps": float("nan")}, "fps is nan"), ({"cameras": {"front": [8]}}, "camera 'front' is"),
  ({"fpz": 1}, "unknown field 'fpz'"), ({"state_dim": -1}, "state_dim is -1"), ({"cameras": 3}, "cameras is 3"),
  ({"categories": {"a": "much"}}, "category 'a'"),
])
def test_a_damaged_schema_is_named(change, message, tmp_path):
  folder = record(tmp_path / "set", 1)
  file = folder / "schema.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(Pi0RagError, match=rf"schema.json': {message}"):
    Schema.load(folder)
