"""Recorded interventions: which frames become records, what they say, and what is refused."""

import io
import json
import types

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pi0rag_jax.data import columns
from pi0rag_jax.data.dataset import Fields
from pi0rag_jax.data.episodes import FORMAT_NAME
from pi0rag_jax.data.formats import open_dataset
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.learning import interventions, lessons
from pi0rag_jax.learning.interventions import InterventionConfig
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.policy import directory
from pi0rag_jax.robots import aloha, panda
from pi0rag_jax.robots.images import resize_with_pad
from pi0rag_jax.robots.normalize import NormStats
from pi0rag_jax.robots.robot import ActionSpace
from pi0rag_jax.steering.agent import Agent
from tests.learning.recorded_aloha import write_aloha
from tests.steering.conftest import make_policy  # noqa: F401

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")
FRAMES, FLAG = 24, np.isin(np.arange(24), range(12, 18))
CONFIG = InterventionConfig(stride=2, before=2, before_stride=4)


def actions():
  """Returns float32[24, 5]: 1 mm a frame along x, the other way while a person acts; closed from frame 20 on."""
  found = np.zeros((FRAMES, 5), np.float32)
  found[:, 0] = np.where(FLAG, -0.001, 0.001)
  found[:20, 4] = 1.0
  return found


def write_hdf5(path, *, flag=FLAG, by=None, scale=1.0):
  rng = np.random.default_rng(0)
  with h5py.File(path, "w") as file:
    file.attrs.update({"format": FORMAT_NAME, "version": 2})
    group = file.create_group("episode_0")
    group.attrs.update({"prompt": "pick up the red cube", "fps": 20.0, "success": True})
    group["state"] = rng.standard_normal((FRAMES, 10)).astype(np.float32)
    group["actions"] = actions() * scale
    for camera in CAMERAS:
      group[f"image/{camera}"] = rng.integers(0, 256, (FRAMES, 48, 64, 3), np.uint8)
    if flag is not None:
      group["intervention"] = flag
    if by is not None:
      group["by"] = by
  return path


def write_lerobot(root):
  """Writes a LeRobot v3.0 data set with its pictures in the table."""
  rng, keys = np.random.default_rng(0), [f"observation.images.{camera}" for camera in CAMERAS]
  scalar = {"shape": [1], "names": None}
  features = {key: {"dtype": "image", "shape": [48, 64, 3], "names": None} for key in keys} | {
      "observation.state": {"dtype": "float32", "shape": [10], "names": None},
      "action": {"dtype": "float32", "shape": [5], "names": None},
      "intervention": {"dtype": "bool", **scalar}, "timestamp": {"dtype": "float32", **scalar}}
  features |= {name: {"dtype": "int64", **scalar} for name in ("frame_index", "episode_index", "index", "task_index")}
  place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
  info = {"codebase_version": "v3.0", "robot_type": None, "fps": 20, "features": features, "chunks_size": 1000,
          "total_episodes": 1, "data_path": f"data/{place}.parquet", "video_path": None}
  for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
    (root / folder).mkdir(parents=True)
  (root / "meta/info.json").write_text(json.dumps(info))
  pq.write_table(pa.table({"task_index": [0], "__index_level_0__": ["pick up the red cube"]}),
                 root / "meta/tasks.parquet")
  episode = {"episode_index": 0, "length": FRAMES, "data/chunk_index": 0, "data/file_index": 0}
  pq.write_table(pa.Table.from_pylist([episode]), root / "meta/episodes/chunk-000/file-000.parquet")
  columns = {"observation.state": list(rng.standard_normal((FRAMES, 10)).astype(np.float32)), "action": list(actions()),
             "intervention": FLAG, "timestamp": (np.arange(FRAMES) / 20).astype(np.float32),
             "frame_index": np.arange(FRAMES), "index": np.arange(FRAMES)}
  columns |= {name: np.zeros(FRAMES, np.int64) for name in ("episode_index", "task_index")}
  columns |= {key: [_png(rng) for _ in range(FRAMES)] for key in keys}
  pq.write_table(pa.table(columns), root / "data/chunk-000/file-000.parquet")
  return root


def _png(rng):
  buffer = io.BytesIO()
  Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(buffer, "png")
  return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture(scope="module")
def policy(tiny_policy_dir):
  return directory.load(tiny_policy_dir)


@pytest.fixture
def memory(tmp_path, policy):
  with Memory.open(tmp_path / "memory", **policy.memory_header()) as memory:
    yield memory


def test_frames_within_and_before_an_intervention():
  assert interventions.chosen_frames(FLAG, CONFIG).tolist() == [4, 8, 12, 14, 16]
  two = np.isin(np.arange(24), [2, 3, 6, 7])
  # None before the episode, none within the intervention before.
  assert interventions.chosen_frames(two, InterventionConfig(before=3, before_stride=2)).tolist() == [0, 2, 3, 4, 6, 7]


@pytest.mark.parametrize("teacher", ["human", "expert"])
def test_who_acted_says_where_a_person_had_taken_over(tmp_path, teacher):
  path = write_hdf5(tmp_path / "a.hdf5", flag=None, by=np.where(FLAG, teacher, "policy").astype("S6"))
  for name in ("intervention", "by"):
    flag_F = interventions.intervened(open_dataset(path).read_episode(0), name, "x")
    np.testing.assert_array_equal(flag_F, FLAG)


def test_what_the_person_did_and_the_way_to_it():
  chunks = lessons.shortened_chunks(actions(), np.array([8, 16]), np.array([12, 16]), 16, panda.ACTIONS)
  # From frame 8: the 4 mm forward of frames 8 to 11 less the first 1 mm back, at once; then the person's path.
  np.testing.assert_allclose(chunks[0, :8, 0], [0.003, *[-0.001] * 5, 0.001, 0.001], atol=1e-6)
  np.testing.assert_allclose(chunks[1, :, 0], [-0.001] * 2 + [0.001] * 6 + [0.0] * 8, atol=1e-6)
  np.testing.assert_array_equal(chunks[1, :, 4], [1.0] * 4 + [0.0] * 12)  # the gripper stays as it was


@pytest.mark.parametrize("form", ["hdf5", "lerobot"])
def test_records_of_a_data_set(tmp_path, policy, memory, form):
  if form == "hdf5":
    dataset = open_dataset(write_hdf5(tmp_path / "a.hdf5"))
  else:
    cameras = {camera: f"observation.images.{camera}" for camera in CAMERAS}
    dataset = open_dataset(write_lerobot(tmp_path / "data"), fields=Fields(cameras=cameras))
  counts = interventions.learn(memory, policy, dataset, CONFIG, task="pick")
  assert (counts.episodes, counts.interventions, counts.records) == (1, 1, 5) and len(memory) == 5
  interventions.learn(memory, policy, dataset, CONFIG, task="pick")
  assert len(memory) == 5
  records = [record for _, record in memory.records()]
  assert [r.provenance["tick"] for r in records] == [4, 8, 12, 14, 16]
  assert {(r.kind, r.provenance["source"], r.prompt) for r in records} == {
      ("correction", "human", "pick up the red cube")}
  episode = dataset.read_episode(0)
  images = {camera: resize_with_pad(pictures, 64, 64) for camera, pictures in episode.images.items()}
  seen = [{"image": {camera: images[camera][frame] for camera in CAMERAS}, "state": episode.state[frame],
           "prompt": "pick up the red cube"} for frame in (4, 8, 12, 14, 16)]
  _, encoded = policy.encode((), policy.prepare(seen))
  np.testing.assert_allclose([r.key for r in records], np.asarray(encoded.key_BE)[:5], atol=1e-2)
  np.testing.assert_allclose([r.base_chunk for r in records], np.asarray(policy.decode(encoded))[:5], atol=1e-3)


@pytest.mark.parametrize(("write", "fields", "message"), [
    ({"flag": None}, Fields(), "unknown field for the intervention.*'intervention'"),
    ({"flag": np.zeros(24, bool)}, Fields(),
     "no frame in which 'intervention' is set, or 'by' is human or expert, in 1 episodes"),
    ({"scale": 1000.0}, Fields(), "takes -0.015 to 0.015: convert"),
    ({}, Fields(cameras=["base_0_rgb"]), "left_wrist_0_rgb"),
    ({}, Fields(state=["state", "state"]), "state has 20 numbers, the robot has 10"),
])
def test_data_that_do_not_fit_are_refused(tmp_path, policy, memory, write, fields, message):
  dataset = open_dataset(write_hdf5(tmp_path / "a.hdf5", **write), fields=fields)
  with pytest.raises(Pi0RagError, match=message):
    interventions.learn(memory, policy, dataset, CONFIG)
  assert len(memory) == 0


def test_another_rate_is_refused(policy):
  with pytest.raises(Pi0RagError, match=r"'x' has 10 frames per s, policy 'tiny' acts 20 times: .*--fps"):
    interventions.check_rate(10.0, policy, "x")
  interventions.check_rate(20.0000001, policy, "x")


def test_places_are_the_path_themselves():
  """Of absolute joints the way to the person's path is the path; where no limit is known, nothing is cut off."""
  actions_FA = np.linspace(0, 1, FRAMES)[:, None] * np.ones(14, np.float32)
  for space in (aloha.ACTIONS, ActionSpace.of_stats(NormStats(np.zeros(14), np.ones(14)))):
    chunks = lessons.shortened_chunks(actions_FA, np.array([8, 20]), np.array([12, 20]), 6, space)
    np.testing.assert_allclose(chunks[0], actions_FA[12:18], atol=1e-6)
    np.testing.assert_allclose(chunks[1], actions_FA[[20, 21, 22, 23, 23, 23]], atol=1e-6)
    lessons.check_limits(actions_FA, space, "x")
  with pytest.raises(Pi0RagError, match=r"x: entry 6 of the action at frame 1 is 4.34783, .* takes -1 to 2"):
    lessons.check_limits(100 * actions_FA, aloha.ACTIONS, "x")
  with pytest.raises(Pi0RagError, match="14 numbers of action, the policy's robot has 5"):
    lessons.check_limits(actions_FA, panda.ACTIONS, "x")


@pytest.mark.parametrize("kind", ["pi05", "pi0_fast", "lstm"])
def test_any_policy_learns_through_its_robots_own_transforms(tmp_path, make_policy, kind):  # noqa: F811
  recorded, policy = write_aloha(tmp_path / "data" / "open_the_jar"), make_policy(kind)
  repack = {"images": {"cam_high": "cam_high", "cam_left_wrist": "cam_left_wrist"}, "state": "observations/qpos",
            "actions": "action", "prompt": "prompt"}
  dataset, to_robot = columns.open_columns(tmp_path / "data", repack, action_columns=("action",),
                                           fields={"default_prompt": "open the jar"})
  with Memory.open(tmp_path / "memory", **policy.memory_header()) as memory:
    counts = interventions.learn(memory, policy, dataset, InterventionConfig(stride=4, before=0), to_robot=to_robot)
    assert counts.records == 6
    found = {record.provenance["tick"]: record for _, record in memory.records() if record.provenance["episode"] == 1}
    wanted_TA = dataset.read_episode(1, images=False).actions[20:28]
    np.testing.assert_allclose(found[20].corrected_chunk, wanted_TA, atol=1e-2)
    # A policy that remembers was asked every four of the frames before.
    agent = Agent(policy, memory)
    for frame in range(0, 20, policy.spec.execute_steps):
      agent.infer(recorded[frame])
    base_TA, taught_TA = Agent(policy).infer(recorded[20])["actions"], agent.infer(recorded[20])["actions"]
    agent.close()
  if kind != "lstm":
    np.testing.assert_allclose(found[20].base_chunk, base_TA, atol=1e-2)
  assert np.abs(taught_TA - wanted_TA).mean() < 0.2 * np.abs(base_TA - wanted_TA).mean()


class Remembering:
  """A policy whose chunk is how many frames it has seen, and the last of them."""

  spec = types.SimpleNamespace(execute_steps=4)

  def start(self, rows):
    return np.zeros(rows)

  def prepare(self, raws):
    return np.array([raw["state"][0] for raw in raws])

  def encode(self, carry, inputs):
    carry = carry.copy()
    carry[: len(inputs)] += 1
    return carry, types.SimpleNamespace(key_BE=inputs[:, None], count_B=carry)

  def decode(self, encoded):
    return encoded.count_B[:, None, None]


def test_what_remembers_meets_the_episode_at_its_own_pace(tmp_path):
  path = write_hdf5(tmp_path / "a.hdf5")
  with h5py.File(path, "a") as file:
    file["episode_0/state"][:, 0] = np.arange(FRAMES)
  dataset = open_dataset(path)
  seen = interventions.Seen(dataset, 0, dataset.read_episode(0, images=False), dict)
  found = list(interventions._decisions(Remembering(), seen, np.array([3, 8, 11, 23]), 32))
  assert [(frame, int(key_E[0]), int(chunk_TA[0, 0])) for frame, key_E, chunk_TA in found] == [
      (3, 3, 1), (8, 8, 3), (11, 11, 3), (23, 23, 6)]
