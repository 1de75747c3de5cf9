"""RLDS data sets of other forms than the recorded one: nested actions, plain pictures, many shards, other names."""

import json
import struct

import numpy as np
import pytest

from pi0rag_jax.data import formats, tfrecord
from pi0rag_jax.data.dataset import DamagedEpisode, Fields
from pi0rag_jax.errors import Pi0RagError


def tensor(dtype, *shape):
  return {"tensor": {"dtype": dtype, "shape": {"dimensions": [str(n) for n in shape]}}}


def tree(**features):
  return {"featuresDict": {"features": features}}


FEATURES = tree(
  steps={"sequence": {"feature": tree(
    action=tree(world_vector=tensor("float64", 3), gripper=tensor("int32")),
    observation=tree(natural_language_instruction={"text": {}}, camera=tensor("uint8", 4, 6, 3),
                     proprio=tensor("float32", 2), mask=tensor("bool", 2)),
  )}},
  episode_id=tensor("int64"),
)


def example(number: int, length: int) -> bytes:
  message = tfrecord._example_class()[0]()
  add = message.features.feature
  add["episode_id"].int64_list.value.append(number)
  add["steps/action/world_vector"].float_list.value.extend(number + np.arange(length * 3) / 4)
  add["steps/action/gripper"].int64_list.value.extend([1] * length)
  add["steps/observation/natural_language_instruction"].bytes_list.value.extend([b"open it"] * length)
  pictures = (np.arange(length)[:, None, None, None] + np.zeros((4, 6, 3))).astype(np.uint8)
  add["steps/observation/camera"].int64_list.value.extend(pictures.ravel().tolist())
  add["steps/observation/proprio"].float_list.value.extend([number] * 2 * length)
  add["steps/observation/mask"].int64_list.value.extend([0, 1] * length)
  return message.SerializeToString()


def write(folder, shards: int = 12):
  """Writes one episode of `number + 1` frames to each shard."""
  folder.mkdir(parents=True)
  (folder / "features.json").write_text(json.dumps(FEATURES))
  for number in range(shards):
    record = example(number, number + 1)
    header = struct.pack("<Q", len(record))
    data = header + struct.pack("<I", tfrecord._masked_crc(header)) + record
    data += struct.pack("<I", tfrecord._masked_crc(record))
    (folder / f"arm-train.tfrecord-{number:05d}-of-{shards:05d}").write_bytes(data)
  return folder


def test_checksums_are_those_of_the_format():
  # CRC-32C of 32 zero bytes, RFC 3720 appendix B.4, masked.
  crc = 0x8A9136AA
  assert tfrecord._masked_crc(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_nested_actions_plain_pictures_and_other_names(tmp_path):
  path = write(tmp_path / "arm" / "0.1.0")
  with pytest.raises(Pi0RagError, match=r"unknown field for the actions 'action'.*action/gripper, action/world_vector"):
    formats.open_dataset(tmp_path).read_episode(0)
  dataset = formats.open_dataset(tmp_path, fields=Fields(actions=("action/world_vector", "action/gripper"), fps=3))
  assert (dataset.format, dataset.lengths.tolist(), dataset.cameras) == ("rlds", list(range(1, 13)), ("camera",))
  data = dataset.read_episode(11)
  np.testing.assert_array_equal(data.actions[:, :3], 11 + np.arange(36).reshape(12, 3) / 4)
  assert data.actions[:, 3].tolist() == [1] * 12
  assert (data.state.shape, data.prompts[5], data.metadata["episode_id"]) == ((12, 2), "open it", 11)
  assert data.extras["observation/mask"].dtype == bool
  assert data.images["camera"][:, 0, 0, 0].tolist() == list(range(12))
  write(tmp_path / "arm" / "0.2.0")
  with pytest.raises(Pi0RagError, match=r"needs one RLDS data set .*0\.1\.0, .*0\.2\.0"):
    formats.open_dataset(tmp_path)
  assert formats.open_dataset(path).num_episodes == 12


def one_record(folder, steps: dict, values: dict, *, top: dict | None = None):
  """Writes a data set of one record of 3 steps."""
  folder.mkdir(parents=True)
  usual = {"action": tensor("float32", 2), "observation": tree(state=tensor("float32", 2))}
  features = tree(steps={"sequence": {"feature": tree(**(usual | steps))}}, **(top or {}))
  (folder / "features.json").write_text(json.dumps(features))
  message = tfrecord._example_class()[0]()
  zeros = {"steps/action": [0.0] * 6, "steps/observation/state": [0.0] * 6}
  for name, stored in (zeros | values).items():
    feature = message.features.feature[name]
    kind = feature.bytes_list if isinstance(stored[0], bytes) else (
      feature.float_list if isinstance(stored[0], float) else feature.int64_list)
    kind.value.extend(stored)
  record = message.SerializeToString()
  header = struct.pack("<Q", len(record))
  data = header + struct.pack("<I", tfrecord._masked_crc(header)) + record
  (folder / "arm-train.tfrecord-00000-of-00001").write_bytes(data + struct.pack("<I", tfrecord._masked_crc(record)))
  return folder


def test_texts_of_every_kind(tmp_path):
  points = [ord(c) for c in "push"] + [0] * 4
  observation = tree(state=tensor("float32", 2), instruction=tensor("int32", 8))
  path = one_record(tmp_path / "points", {"observation": observation}, {"steps/observation/instruction": points * 3})
  assert formats.open_dataset(path).read_episode(0).prompts == ["push"] * 3
  text = {"language_instruction": {"text": {}}, "language_instruction_2": {"text": {}}}
  empty = {"steps/language_instruction": [b""] * 3, "steps/language_instruction_2": [b"go"] * 3}
  path = one_record(tmp_path / "empty", text, empty)
  assert formats.open_dataset(path).read_episode(0).prompts == [""] * 3
  assert formats.open_dataset(path, fields=Fields(default_prompt="x")).read_episode(0).prompts == ["x"] * 3
  assert formats.open_dataset(path, fields=Fields(prompt="language_instruction_2")).read_episode(0).prompts[0] == "go"
  path = one_record(tmp_path / "three", text, {"steps/language_instruction": [b"a"] * 9})
  with pytest.raises(DamagedEpisode, match=r"'language_instruction', of the prompt: 3 frames need as many texts, the "
                                           r"record holds 9, 3 per frame"):
    formats.open_dataset(path).read_episode(0)
  with pytest.raises(Pi0RagError, match=r"unknown field for the prompt 'action'"):
    formats.open_dataset(path, fields=Fields(prompt="action")).read_episode(0)


def test_what_nobody_asked_for_costs_nothing(tmp_path):
  features = {"reward": tensor("float32"), "packed": {"tensor": {"dtype": "int64", "encoding": "zlib"}}}
  values = {"steps/reward": [0.0] * 5, "steps/packed": [b"no zlib"], "file_path": [b"\xff\xfe"]}
  path = one_record(tmp_path / "a", features, values, top={"file_path": {"text": {}}})
  data = formats.open_dataset(path).read_episode(0)
  assert (data.state.shape, dict(data.metadata), set(data.extras)) == ((3, 2), {}, {"action", "observation/state"})
  with pytest.raises(DamagedEpisode, match=r"'reward', of the state"):
    formats.open_dataset(path, fields=Fields(state="reward")).read_episode(0)


def test_depth_and_files_of_editors_are_left_out(tmp_path):
  image = lambda dtype, n: {"image": {"shape": {"dimensions": ["4", "6", str(n)]}, "dtype": dtype}}  # noqa: E731
  path = one_record(tmp_path / "a", {"observation": tree(
    state=tensor("float32", 2), rgb=image("uint8", 3), far=image("float32", 1), mm=image("uint16", 1),
    depth=image("uint8", 1))}, {})
  for name in ("._arm-train.tfrecord-00000-of-00001", "arm-train.tfrecord-00000-of-00001~", "arm-train.tfrecord.swp"):
    (path / name).write_bytes(b"nothing")
  dataset = formats.open_dataset(path)
  assert (dataset.cameras, dataset.num_episodes) == (("rgb",), 1)
  with pytest.raises(Pi0RagError, match=r"'far' is no RGB camera: stored is float32"):
    formats.open_dataset(path, fields=Fields(cameras=["far"]))


@pytest.mark.parametrize("feature, message", [
  (tensor("float32", 10**9, 10**9), "feature 'odd', shape is"), ({"tensor": {"shape": {}}}, "'odd', dtype is missing"),
  (tensor("nothing", 2), "names the dtype 'nothing'"), ({"tensor": 3}, "feature 'odd' is 3"),
])
def test_features_of_theirs_are_checked(feature, message, tmp_path):
  with pytest.raises(Pi0RagError, match=message):
    formats.open_dataset(one_record(tmp_path / "a", {"odd": feature}, {}))
