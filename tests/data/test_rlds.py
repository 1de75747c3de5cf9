"""RLDS data sets of other forms than the recorded one: nested actions, plain pictures, many shards, other names."""

import json
import struct

import numpy as np
import pytest

from pi0rag_jax.data import formats, tfrecord
from pi0rag_jax.data.dataset import Fields
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
