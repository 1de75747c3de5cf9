"""HDF5 files as they are in the wild: several tasks, several versions, other kinds of pictures, things in between."""

import io
import json

import h5py
import numpy as np
import pytest
from PIL import Image

from pi0rag_jax.data import cache, formats
from pi0rag_jax.data.dataset import DamagedEpisode, Fields
from pi0rag_jax.errors import Pi0RagError

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 255, (4, 16, 24, 3), dtype=np.uint8)


def robomimic(path, *, demos=2, frames=4, text="", rate=None, env="Lift", actions=None, **observed):
  """Writes a file of the layout; `actions` are those of every demonstration."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with h5py.File(path, "w") as file:
    data = file.create_group("data")
    if text:
      data.attrs["problem_info"] = json.dumps({"language_instruction": text})
    settings = {} if rate is None else {"control_freq": rate}
    data.attrs["env_args"] = json.dumps({"env_name": env, "env_kwargs": settings})
    for number in range(demos):
      demo = data.create_group(f"demo_{number}")
      demo["actions"] = RNG.normal(size=(frames + number, 7)) if actions is None else actions[: frames + number]
      for name, values in ({"robot0_eef_pos": np.zeros((frames + number, 3))} | observed).items():
        demo[f"obs/{name}"] = values[: frames + number] if isinstance(values, np.ndarray) else values
  return path


def aloha(path, *, frames=4, **stored):
  path.parent.mkdir(parents=True, exist_ok=True)
  usual = {"action": np.zeros((frames, 14)), "observations/qpos": np.zeros((frames, 14))}
  with h5py.File(path, "w") as file:
    for name, values in (usual | stored).items():
      if values is not None:
        file[name] = values
  return path


def jpeg(picture) -> bytes:
  file = io.BytesIO()
  Image.fromarray(picture).save(file, "JPEG", quality=95)
  return file.getvalue()


def test_every_file_speaks_for_its_own_episodes(tmp_path):
  robomimic(tmp_path / "a.hdf5", text="close the drawer", rate=10)
  robomimic(tmp_path / "b.hdf5", text="open the drawer", rate=20)
  robomimic(tmp_path / "c.hdf5", env="Stack")
  dataset = formats.open_dataset(tmp_path)
  found = [(data.prompts[0], round(1 / data.timestamps[1])) for _, data in dataset.iterate()]
  assert found == [("close the drawer", 10)] * 2 + [("open the drawer", 20)] * 2 + [("Stack", 20)] * 2
  assert [dataset.episode_fps(e) for e in range(6)] == [10, 10, 20, 20, 20, 20] and not dataset.says_fps
  cached = cache.build_cache(dataset, tmp_path / "cache")
  assert [cached.read_episode(e).timestamps[1] for e in (0, 2)] == [0.1, 0.05]
  fixed = formats.open_dataset(tmp_path, fields=Fields(fps=5, default_prompt="go"))
  assert [data.prompts[0] for _, data in fixed.iterate()][2:] == ["open the drawer"] * 2 + ["go"] * 2
  assert fixed.read_episode(0).timestamps[1] == 0.2


def test_a_camera_that_some_files_lack_is_wanted_of_all(tmp_path):
  aloha(tmp_path / "episode_0.hdf5", **{"observations/images/high": PICTURES})
  aloha(tmp_path / "episode_1.hdf5", **{"observations/images/high": PICTURES, "observations/images/low": PICTURES})
  dataset = formats.open_dataset(tmp_path)
  assert dataset.cameras == ("high", "low")
  with pytest.raises(DamagedEpisode, match=r"'low' of episode 0 in .*0.hdf5' .*'low' is not there; there are high"):
    dataset.read_episode(0)
  assert set(dataset.read_episode(1).images) == {"high", "low"}
  assert formats.open_dataset(tmp_path, fields=Fields(cameras=["high"])).read_episode(0).images["high"].shape[0] == 4


@pytest.mark.parametrize("names", [
  ("image.hdf5", "image_abs.hdf5"), ("low_dim_v141.hdf5", "image_v141.hdf5"), ("pick.hdf5", "pick_abs.hdf5")])
def test_versions_of_the_same_demonstrations_are_not_mixed(names, tmp_path):
  for name in names:
    robomimic(tmp_path / name)
  with pytest.raises(Pi0RagError, match=rf"versions of the same demonstrations, .*{names[0]}' and .*|.*{names[1]}'"):
    formats.open_dataset(tmp_path)
  assert formats.open_dataset(tmp_path / names[0]).num_episodes == 2


def test_copies_are_versions_whatever_their_names_and_tasks_of_one_length_are_none(tmp_path):
  actions = RNG.normal(size=(9, 7))
  robomimic(tmp_path / "copies" / "a" / "first.hdf5", actions=actions)
  robomimic(tmp_path / "copies" / "b" / "second.hdf5", actions=actions)
  with pytest.raises(Pi0RagError, match=r"versions of the same demonstrations"):
    formats.open_dataset(tmp_path / "copies")
  for text in ("open", "close"):
    robomimic(tmp_path / "tasks" / f"{text}.hdf5", text=text, actions=actions)
  robomimic(tmp_path / "tasks" / "still.hdf5", actions=np.zeros((9, 7)))
  robomimic(tmp_path / "tasks" / "still_too.hdf5", actions=np.zeros((9, 7)))
  assert formats.open_dataset(tmp_path / "tasks").num_episodes == 8


def test_files_of_editors_and_systems_are_no_episodes(tmp_path):
  aloha(tmp_path / "episode_0.hdf5")
  for name in ("._episode_0.hdf5", ".#episode_0.hdf5", ".DS_Store", "episode_0.hdf5~", ".episode_0.hdf5.swp",
               ".ipynb_checkpoints/episode_0.hdf5", "__MACOSX/episode_0.hdf5", "~episode_0.hdf5"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"no HDF5")
  assert formats.open_dataset(tmp_path).num_episodes == 1


@pytest.mark.parametrize("dtype", ["S", "V", "vlen", "uint8"])
def test_rows_of_jpeg_bytes_of_any_kind_are_pictures(dtype, tmp_path):
  rows = [jpeg(picture) for picture in PICTURES]
  width = max(map(len, rows))
  padded = [row.ljust(width, b"\0") for row in rows]
  path = aloha(tmp_path / "episode_3" / "episode_3.hdf5")
  with h5py.File(path, "a") as file:
    if dtype in ("S", "V"):
      file["observations/images/cam"] = np.asarray(padded, f"S{width}").view(f"{dtype}{width}")
    elif dtype == "vlen":
      stored = file.create_dataset("observations/images/cam", (4,), h5py.vlen_dtype(np.uint8))
      for i, row in enumerate(rows):
        stored[i] = np.frombuffer(row, np.uint8)
    else:
      file["observations/images/cam"] = np.stack([np.frombuffer(row, np.uint8) for row in padded])
  data = formats.open_dataset(tmp_path).read_episode(0)
  expected = np.stack([np.asarray(Image.open(io.BytesIO(row))) for row in rows])
  np.testing.assert_array_equal(data.images["cam"], expected)
  assert set(data.prompts) == {""}  # no folder's name


@pytest.mark.parametrize("stored, expected", [
  (np.concatenate([PICTURES, PICTURES[..., :1]], -1), PICTURES),
  (PICTURES.astype(np.float32) / 255, PICTURES), (np.moveaxis(PICTURES, -1, 1), PICTURES),
  (PICTURES[..., 0], np.repeat(PICTURES[..., :1], 3, -1)), (PICTURES[..., :1], np.repeat(PICTURES[..., :1], 3, -1)),
], ids=["rgba", "float", "channels_first", "grey", "grey_1"])
def test_pictures_whose_meaning_is_clear_are_read(stored, expected, tmp_path):
  aloha(tmp_path / "episode_0.hdf5", **{"observations/images/cam": stored})
  robomimic(tmp_path / "r" / "a.hdf5", demos=1, cam=stored)
  for path in (tmp_path / "episode_0.hdf5", tmp_path / "r"):
    np.testing.assert_array_equal(formats.open_dataset(path).read_episode(0).images["cam"], expected)


@pytest.mark.parametrize("name, stored", [
  ("cam", np.zeros((4, 16, 24), np.uint16)), ("cam", np.zeros((4, 16, 24, 1), np.float32)),
  ("cam_depth", np.zeros((4, 16, 24), np.uint8)), ("agentview_segmentation", np.zeros((4, 16, 24, 1), np.uint8)),
])
def test_depth_and_masks_are_no_cameras(name, stored, tmp_path):
  stored = {"observations/images/high": PICTURES, f"observations/images/{name}": stored}
  path = aloha(tmp_path / "episode_0.hdf5", **stored)
  assert formats.open_dataset(path).cameras == ("high",)
  with pytest.raises(Pi0RagError, match=rf"'{name}' is no RGB camera: .*Cameras: high"):
    formats.open_dataset(path, fields=Fields(cameras=[name]))


def test_floats_beyond_white_are_told(tmp_path):
  path = aloha(tmp_path / "episode_0.hdf5", **{"observations/images/cam": PICTURES.astype(np.float32)})
  with pytest.raises(DamagedEpisode, match=r"pictures in floats reach from 0 to 2\d\d, allowed: 0 to 1"):
    formats.open_dataset(path).read_episode(0)


def test_groups_where_arrays_are_expected(tmp_path):
  path = aloha(tmp_path / "episode_0.hdf5", action=None, **{
    "action/arm": np.ones((4, 6)), "action/gripper": np.ones(4), "observations/images/cam/color": PICTURES,
    "observations/images/cam/depth": np.zeros((4, 16, 24), np.uint16)})
  with pytest.raises(Pi0RagError, match=r"'action' is a group: give Fields\(actions=...\) its parts"):
    formats.open_dataset(path).read_episode(0)
  dataset = formats.open_dataset(path, fields=Fields(actions=("action/arm", "action/gripper")))
  assert dataset.read_episode(0).actions.shape == (4, 7) and dataset.cameras == ("cam/color",)
  robomimic(tmp_path / "r" / "a.hdf5", demos=1, **{"deep/pictures": PICTURES, "deep/numbers": np.zeros((4, 2))})
  assert formats.open_dataset(tmp_path / "r").read_episode(0).images["deep/pictures"].shape == PICTURES.shape


def test_what_nobody_asked_for_may_be_of_any_kind(tmp_path):
  odd = {"observations/odd": np.zeros(3), "observations/text": np.asarray([b"a"])}
  path = aloha(tmp_path / "episode_0.hdf5", **odd)
  with h5py.File(path, "a") as file:
    file["observations/broken"] = h5py.SoftLink("/nowhere")
    file["observations/kinds"] = np.dtype("f4")
  dataset = formats.open_dataset(path)
  assert dataset.read_episode(0).state.shape == (4, 14)
  with pytest.raises(DamagedEpisode, match=r"'odd', of the state: it has 3 rows, the episode 4"):
    formats.open_dataset(path, fields=Fields(state="odd")).read_episode(0)


@pytest.mark.parametrize("stored, message", [
  ({"observations/qpos": np.zeros((3, 14))}, r"'observations/qpos', of the state: it has 3 rows, the episode 4"),
  ({"observations/images/cam": PICTURES[:2]}, r"camera 'cam' .*'cam' has 2 pictures, frame 3 is asked for"),
])
def test_lengths_that_differ_are_named(stored, message, tmp_path):
  with pytest.raises(DamagedEpisode, match=message):
    formats.open_dataset(aloha(tmp_path / "episode_0.hdf5", **stored)).read_episode(0)


def test_demonstrations_without_observations_and_masks_without_demonstrations(tmp_path):
  with pytest.raises(Pi0RagError, match=r"has no masks, 'train' is asked for"):
    formats.open_dataset(robomimic(tmp_path / "none.hdf5"), mask="train")
  path = robomimic(tmp_path / "a.hdf5")
  with h5py.File(path, "a") as file:
    file["mask/train"] = np.asarray([b"demo_1", b"demo_7"])
  with pytest.raises(Pi0RagError, match=r"mask 'train' of .* lists 'demo_7', which the file does not hold"):
    formats.open_dataset(path, mask="train")
  dataset = formats.open_dataset(path, mask="train", skip_bad=True)
  assert dataset.num_episodes == len(dataset.damaged) == 1
  path = robomimic(tmp_path / "states.hdf5")
  with h5py.File(path, "a") as file:
    del file["data/demo_0/obs"], file["data/demo_1/obs"]
  with pytest.raises(Pi0RagError, match=r"no observations are stored, only states: run .*dataset_states_to_obs"):
    formats.open_dataset(path)


def test_texts_are_texts(tmp_path):
  texts = {"task": np.asarray([b"a", b"b", b"a", b"a"]), "language_raw": np.asarray([b"fold it"])}
  path = aloha(tmp_path / "episode_0.hdf5", **texts)
  with h5py.File(path, "a") as file:
    file.attrs["number"] = 5
  read = lambda **fields: formats.open_dataset(path, fields=Fields(**fields)).read_episode(0).prompts  # noqa: E731
  assert read() == read(default_prompt="x") == ["fold it"] * 4
  assert read(prompt="task") == ["a", "b", "a", "a"]
  with pytest.raises(DamagedEpisode, match=r"'number' holds 5, no text"):
    read(prompt="number")


def test_announced_sizes_that_no_stored_bytes_can_make_are_refused(tmp_path):
  path = aloha(tmp_path / "episode_0.hdf5", **{"observations/qpos": None})
  with h5py.File(path, "a") as file:
    file.create_dataset("observations/qpos", (4, 2**34), np.float32, chunks=(1, 2**20))
    file.create_dataset("observations/images/cam", (4, 2**15, 2**15, 3), np.uint8, chunks=(1, 64, 64, 3))
  with pytest.raises(DamagedEpisode, match=r"announces 274877906944 bytes, stored are 0"):
    formats.open_dataset(path).read_episode(0)
  with pytest.raises(DamagedEpisode, match=r"'cam' announces|announces \d+ bytes, stored are 0"):
    formats.open_dataset(path).read_frames(0, [0])


def test_pointers_of_git_lfs_are_called_that(tmp_path):
  (tmp_path / "a.hdf5").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
  with pytest.raises(Pi0RagError, match=r"a.hdf5' cannot be opened: is a git-lfs pointer: run git lfs pull"):
    formats.open_dataset(tmp_path)


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  aloha(tmp_path / "set" / "episode_0.hdf5")
  assert formats.open_dataset("~/set").num_episodes == 1


def test_any_exception_of_a_decoder_is_damage_of_its_episode(tmp_path, monkeypatch):
  class StrangeError(Exception):
    pass

  for number in range(3):
    aloha(tmp_path / f"episode_{number}.hdf5", **{"observations/images/cam": PICTURES})
  dataset = formats.open_dataset(tmp_path, skip_bad=True)
  read = dataset._read_camera

  def strange(episode, key, indices):
    if episode == 1:
      raise StrangeError("of a library")
    return read(episode, key, indices)

  monkeypatch.setattr(dataset, "_read_camera", strange)
  assert [e for e, _ in dataset.iterate(images=True)] == [0, 2]
  assert "StrangeError: of a library" in dataset.damaged[dataset.episode_name(1)]


def test_versions_are_known_by_what_was_observed_too(tmp_path):
  """Their actions differ: absolute ones beside deltas."""
  place = RNG.normal(size=(9, 3))
  for name in ("can/low_dim.hdf5", "can_abs/low_dim.hdf5"):
    robomimic(tmp_path / "robomimic" / name, robot0_eef_pos=place)
  for name in ("raw/episode_0.hdf5", "small/episode_0.hdf5"):
    aloha(tmp_path / "aloha" / name, action=RNG.normal(size=(4, 14)), **{"observations/qpos": np.tile(place[:4], 4)})
  for folder in ("robomimic", "aloha"):
    with pytest.raises(Pi0RagError, match=r"versions of the same demonstrations, '.*' and '.*': give the path"):
      formats.open_dataset(tmp_path / folder)
  aloha(tmp_path / "tasks/a/episode_0.hdf5", **{"observations/qpos": RNG.normal(size=(4, 14))})
  aloha(tmp_path / "tasks/b/episode_0.hdf5", **{"observations/qpos": RNG.normal(size=(4, 14))})
  assert formats.open_dataset(tmp_path / "tasks").num_episodes == 2


@pytest.mark.parametrize(("stored", "message"), [
  ({"observations/qpos": np.zeros((4, 14), "S3")}, r"'observations/qpos', of the state: stored is .S3"),
  ({"action": np.zeros((4, 0))}, "actions with no entries"), ({"prompt": np.bytes_(b"\xff\xfe")}, "no text in UTF-8"),
  (None, "No such file or directory"),
], ids=["texts", "empty", "no_utf8", "broken_link"])
def test_what_cannot_be_numbers_or_texts_is_damage_of_its_episode(stored, message, tmp_path):
  aloha(tmp_path / "episode_0.hdf5")
  if stored is None:
    (tmp_path / "episode_1.hdf5").symlink_to(tmp_path / "nowhere")
  else:
    aloha(tmp_path / "episode_1.hdf5", **stored)
  with pytest.raises(DamagedEpisode, match=message):
    list(formats.open_dataset(tmp_path).iterate())
  dataset = formats.open_dataset(tmp_path, skip_bad=True)
  assert [episode for episode, _ in dataset.iterate()] == [0] and len(dataset.damaged) == 1
