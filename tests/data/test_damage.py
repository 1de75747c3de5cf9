"""What is broken names file and episode; with skip_bad it is left out and counted, and the rest is read."""

import shutil

import numpy as np
import pytest

from pi0rag_jax.data import formats, loader, sampling
from pi0rag_jax.data.dataset import DamagedEpisode
from pi0rag_jax.errors import Pi0RagError


def flip(data: bytes, place: float) -> bytes:
  """Returns the bytes with some of them inverted."""
  start = int(place * len(data))
  return data[:start] + bytes(255 - byte for byte in data[start : start + 40]) + data[start + 40 :]


def halve(data: bytes, _) -> bytes:
  return data[: len(data) // 2]


@pytest.fixture
def break_file(tmp_path, recorded):
  """A function: copies a recorded data set, breaks the file of a pattern, and returns the copy's path."""

  def broken(name: str, pattern: str, change, place: float = 0.5):
    shutil.copytree(recorded(name)[0], tmp_path / "set")
    file = sorted((tmp_path / "set").glob(pattern))[0]
    file.write_bytes(change(file.read_bytes(), place))
    return tmp_path / "set"

  return broken


@pytest.mark.parametrize("name, pattern, change, place, message, left", [
  ("lerobot_v21", "data/*/*1.parquet", halve, 0, r"episode 1 in '.*episode_000001.parquet' cannot be read", 2),
  ("lerobot_v30", "data/*/*.parquet", flip, 0.2, r"episode \d in '.*file-000.parquet' cannot be read", None),
  ("lerobot_v21", "videos/*/*front/*1.mp4", halve, 0, r"front' of episode 1 in .* video '.*episode_000001.mp4'", 2),
  ("lerobot_v30", "videos/*front/*/*.mp4", flip, 0.5, r"front' of episode \d in .* video '.*file-000.mp4'", None),
  ("robomimic_hdf5", "*.hdf5", flip, 0.5, r"episode \d \(data/demo_\d+\) in '.*image.hdf5' cannot be read", 2),
  ("aloha_hdf5_jpeg", "*/episode_1.hdf5", halve, 0, r"'.*episode_1.hdf5' cannot be read", 1),
  ("rlds_tfrecord", "*/*/*00001-of-00002", flip, 0.1, r"the record at byte 0 in '.*00001-of-00002' cannot be read", 4),
  ("rlds_tfrecord", "*/*/*00001-of-00002", halve, 0, r"00001-of-00002' cannot be read.*ends within the record", None),
], ids=["parquet_cut", "parquet", "video_cut", "video", "robomimic", "aloha_cut", "tfrecord", "tfrecord_cut"])
def test_damage_is_named_and_skipped(name, pattern, change, place, message, left, break_file):
  path = break_file(name, pattern, change, place)
  with pytest.raises(DamagedEpisode, match=message):
    for _ in formats.open_dataset(path).iterate(images=True):
      pass
  dataset = formats.open_dataset(path, skip_bad=True)
  read = len(list(dataset.iterate(images=True)))
  assert dataset.damaged and read
  assert left in (None, read)


def test_missing_records_of_a_shard_are_noticed(break_file):
  path = break_file("rlds_tfrecord", "*/*/*00001-of-00002", lambda data, _: b"")
  with pytest.raises(DamagedEpisode, match=r"announces 5 episodes in 'train', its shards hold 2"):
    formats.open_dataset(path)
  assert formats.open_dataset(path, skip_bad=True).num_episodes == 2


def test_a_file_that_is_all_broken_is_named(break_file):
  path = break_file("robomimic_hdf5", "*.hdf5", halve)
  with pytest.raises(Pi0RagError, match=r"image.hdf5' cannot be opened.*truncated"):
    formats.open_dataset(path)


def test_a_loader_replaces_what_is_damaged_and_counts_it(break_file):
  path = break_file("lerobot_v21", "videos/*/*front/*1.mp4", halve)
  batches = []
  for _ in range(2):
    dataset = formats.open_dataset(path, skip_bad=True)
    sampler = sampling.Sampler(sampling.Mixture(dataset), batch_size=16, seed=0)
    with loader.Loader(sampler, horizon=4) as made:
      batches.append(next(made)[1])
    assert made.skipped == int((sampler.rows(0).episode == 1).sum()) > 0
    assert list(dataset.damaged) == [dataset.episode_name(1)]
  np.testing.assert_array_equal(batches[0]["state"], batches[1]["state"])
  sampler = sampling.Sampler(sampling.Mixture(formats.open_dataset(path)), batch_size=16, seed=0)
  with pytest.raises(DamagedEpisode, match=r"episode_000001.mp4"), loader.Loader(sampler, horizon=4) as made:
    next(made)
