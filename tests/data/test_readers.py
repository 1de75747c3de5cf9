"""Every format reads exactly what the real libraries wrote, every frame at its index."""

import numpy as np
import pytest

from pi0rag_jax.data import episodes, formats
from pi0rag_jax.data.dataset import Fields
from pi0rag_jax.errors import Pi0RagError

# Name: format, and the order of the expected episodes on the disk.
DATASETS = {
  "lerobot_v30": ("lerobot", None), "lerobot_v30_images": ("lerobot", None), "lerobot_v21": ("lerobot", None),
  "lerobot_v21_images": ("lerobot", None), "robomimic_hdf5": ("robomimic", None), "aloha_hdf5": ("aloha", None),
  "aloha_hdf5_jpeg": ("aloha", None), "rlds_tfrecord": ("rlds", (1, 0, 2, 3, 4)),
}


@pytest.mark.parametrize("name", DATASETS)
def test_every_number_text_and_frame_is_read(name, recorded, barcode):
  path, expected, truth = recorded(name)
  dataset = formats.open_dataset(path)
  order = DATASETS[name][1] or range(len(expected["lengths"]))
  assert dataset.format == DATASETS[name][0]
  assert dataset.lengths.tolist() == [expected["lengths"][e] for e in order]
  for episode, e in enumerate(order):
    data = dataset.read_episode(episode)
    key = "action" if f"ep{e}/action" in truth else "actions"
    np.testing.assert_array_equal(data.actions, truth[f"ep{e}/{key}"])
    assert data.actions.dtype == truth[f"ep{e}/{key}"].dtype
    if f"ep{e}/state" in truth:
      np.testing.assert_array_equal(data.state, truth[f"ep{e}/state"])
    if "tasks" in expected:
      assert set(data.prompts) == {expected["tasks"][e]}
    np.testing.assert_allclose(data.timestamps, np.arange(len(data)) / dataset.fps, atol=1e-5)
    for pictures in data.images.values():
      assert [barcode(picture) for picture in pictures] == list(range(len(data)))
  assert dataset.state_dim == expected.get("state_dim", 9)
  assert dataset.action_dim == expected.get("action_dim", 7)


@pytest.mark.parametrize("name", DATASETS)
def test_pictures_are_as_near_to_the_originals_as_the_library_decodes_them(name, recorded):
  path, expected, truth = recorded(name)
  dataset = formats.open_dataset(path)
  episode = (DATASETS[name][1] or (0,)).index(0)
  for camera in dataset.cameras:
    short = camera.removeprefix("observation.images.").removesuffix("_image") if name[0] == "l" else camera
    short = camera.removesuffix("_image") if name == "robomimic_hdf5" else short
    frames = dataset.read_frames(episode, truth[f"ep0/frame_idx/{short}"], [camera])[camera]
    apart = np.abs(frames.astype(int) - truth[f"ep0/frames/{short}"]).mean()
    error = expected.get("decode_error", expected.get("decode_error_by_lerobot_pyav", {}))
    assert apart <= error.get(camera, error).get("worst_frame_mean_abs", 0.0)


@pytest.mark.parametrize("name", DATASETS)
def test_frames_in_any_order_are_those_of_the_whole_episode(name, recorded):
  dataset = formats.open_dataset(recorded(name)[0])
  rng = np.random.default_rng(0)
  for episode in rng.integers(dataset.num_episodes, size=3):
    indices = rng.integers(dataset.episode_length(episode), size=6)
    camera = dataset.cameras[-1]
    whole = dataset.read_episode(episode).images[camera]
    np.testing.assert_array_equal(dataset.read_frames(episode, indices, [camera])[camera], whole[indices])


def test_robomimic_demos_are_in_the_order_of_their_numbers_and_masks_choose(recorded):
  path, _, truth = recorded("robomimic_hdf5")
  dataset = formats.open_dataset(path)
  assert [dataset.read_episode(e, images=False).metadata["demo"] for e in range(3)] == ["demo_0", "demo_2", "demo_10"]
  data = dataset.read_episode(2, images=False)
  parts = [truth[f"ep2/obs_robot0_{part}"] for part in ("eef_pos", "eef_quat", "gripper_qpos")]
  np.testing.assert_array_equal(data.state, np.concatenate(parts, axis=1))
  assert (dataset.fps, data.prompts[0]) == (20.0, "Lift")
  assert formats.open_dataset(path, mask="train").lengths.tolist() == dataset.lengths[[0, 2]].tolist()
  with pytest.raises(Pi0RagError, match=r"unknown mask of .* 'test'"):
    formats.open_dataset(path, mask="test")


def test_the_projects_own_episodes_are_read(tmp_path):
  rng = np.random.default_rng(0)
  written = []
  for seed, length in ((3, 5), (12, 7)):
    pictures = {"base_0_rgb": rng.integers(0, 255, (length, 8, 12, 3), dtype=np.uint8)}
    numbers = [rng.normal(size=(length, *shape)).astype(np.float32) for shape in ((4,), (2,), (6, 2), (3,))]
    written.append(episodes.Episode(pictures, *numbers[:3], {"target": numbers[3]}, "lift", "t", "nominal", "raycast",
                                    seed, True))
    episodes.write_episodes(episodes.episode_path(tmp_path, seed), written[-1:])
  dataset = formats.open_dataset(tmp_path)
  chunks = formats.open_dataset(tmp_path, fields=Fields(actions="action_chunks"))
  assert (dataset.format, dataset.fps, dataset.lengths.tolist()) == ("episodes", 20.0, [5, 7])
  for number, episode in enumerate(written):
    data = dataset.read_episode(number)
    np.testing.assert_array_equal(data.state, episode.state)
    np.testing.assert_array_equal(data.actions, episode.actions)
    np.testing.assert_array_equal(data.images["base_0_rgb"], episode.images["base_0_rgb"])
    np.testing.assert_array_equal(data.extras["privileged/target"], episode.privileged["target"])
    np.testing.assert_array_equal(chunks.read_episode(number).actions, episode.action_chunks)
    assert (set(data.prompts), data.metadata["seed"]) == ({"lift"}, episode.seed)


def test_fields_and_cameras_are_chosen_by_name(recorded):
  path, _, truth = recorded("aloha_hdf5_jpeg")
  fields = Fields(state=("qvel", "qpos"), actions=("action", "base_action"), cameras={"base": "cam_high"}, fps=25.0,
                  default_prompt="wipe the table")
  dataset = formats.open_dataset(path, fields=fields, color="bgr")
  data = dataset.read_episode(0)
  np.testing.assert_array_equal(data.state, np.concatenate([truth["ep0/qvel"], truth["ep0/state"]], axis=1))
  np.testing.assert_array_equal(data.actions[:, 14:], truth["ep0/base_action"])
  assert (data.prompts[0], dataset.fps, list(data.images)) == ("wipe the table", 25.0, ["base"])
  rgb = formats.open_dataset(path).read_frames(0, [3], ["cam_high"])["cam_high"]
  np.testing.assert_array_equal(data.images["base"][3:4], rgb[..., ::-1])


@pytest.mark.parametrize("name, wrong, message", [
  ("lerobot_v30", {"fields": Fields(cameras=["front"])}, "unknown camera 'front'"),
  ("lerobot_v30", {"color": "bgr"}, "unknown option of the format lerobot 'color'"),
  ("lerobot_v30", {"format": "hdf5"}, "unknown data set format 'hdf5'"),
  ("aloha_hdf5", {"color": "grb"}, "unknown colour order 'grb'. Did you mean"),
  ("rlds_tfrecord", {"split": "test"}, "unknown split of .* 'test'.*Valid names: train"),
])
def test_wrong_options_name_the_right_ones(name, wrong, message, recorded):
  with pytest.raises(Pi0RagError, match=message):
    formats.open_dataset(recorded(name)[0], **wrong)


def test_wrong_fields_episodes_and_frames_are_refused(recorded, tmp_path):
  path = recorded("lerobot_v30")[0]
  with pytest.raises(Pi0RagError, match=r"unknown field for the state 'joints'.*observation.state"):
    formats.open_dataset(path, fields=Fields(state="joints")).read_episode(0)
  dataset = formats.open_dataset(path)
  with pytest.raises(Pi0RagError, match=r"has episodes 0 to 5, asked for 6"):
    dataset.read_episode(6)
  with pytest.raises(Pi0RagError, match=r"has frames 0 to 23, asked for \[24\]"):
    dataset.read_frames(0, [24])
  with pytest.raises(Pi0RagError, match=r"no data set at"):
    formats.open_dataset(tmp_path / "none")
  with pytest.raises(Pi0RagError, match=r"holds no data set that we know; formats: aloha"):
    formats.open_dataset(tmp_path)
