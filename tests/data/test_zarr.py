"""Replay buffers of Diffusion Policy."""

import shutil

import numpy as np
import pytest
import tensorstore as ts

from pi0rag_jax.data import cache, formats
from pi0rag_jax.data.dataset import DamagedEpisode, Fields
from pi0rag_jax.errors import Pi0RagError

RNG = np.random.default_rng(0)
ENDS = np.asarray([4, 9, 11])
PICTURES = RNG.integers(0, 255, (11, 16, 24, 3), dtype=np.uint8)
BUFFER = {"data/img": PICTURES.astype(np.float32), "data/state": RNG.normal(size=(11, 5)).astype(np.float32),
          "data/action": RNG.normal(size=(11, 2)).astype(np.float32), "meta/episode_ends": ENDS}


def write(root, arrays, *, chunk=3):
  for name, values in arrays.items():
    compressor = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}
    metadata = {"chunks": [chunk, *values.shape[1:]], "compressor": compressor}
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{root}/{name}/"}, "metadata": metadata}
    store = ts.open(spec, create=True, dtype=values.dtype, shape=values.shape).result()
    store.write(values).result()
  return root


@pytest.mark.parametrize("kind", ["folder", "around", "zip"])
def test_episodes_are_read(kind, tmp_path):
  path = write(tmp_path / "set" / "pusht_cchi_v7_replay.zarr", BUFFER)
  if kind == "zip":
    shutil.make_archive(str(tmp_path / "one.zarr"), "zip", path)
    path = tmp_path / "one.zarr.zip"
  dataset = formats.open_dataset(path.parent if kind == "around" else path, fields=Fields(default_prompt="push"))
  assert (dataset.format, dataset.lengths.tolist(), dataset.cameras) == ("zarr", [4, 5, 2], ("img",))
  for episode, (start, stop) in enumerate(((0, 4), (4, 9), (9, 11))):
    data = dataset.read_episode(episode)
    np.testing.assert_array_equal(data.state, BUFFER["data/state"][start:stop])
    np.testing.assert_array_equal(data.actions, BUFFER["data/action"][start:stop])
    np.testing.assert_array_equal(data.images["img"], PICTURES[start:stop])
    assert data.prompts == ["push"] * (stop - start) and data.timestamps[1] == 0.1
  np.testing.assert_array_equal(dataset.read_frames(1, [4, 0, 0])["img"], PICTURES[[8, 4, 4]])
  assert cache.build_cache(dataset, tmp_path / "cache").num_episodes == 3


def test_the_robots_numbers_are_the_state_where_there_is_none(tmp_path):
  arrays = {"data/robot_joint": np.ones((11, 6)), "data/robot_eef_pose": np.zeros((11, 6)),
            "data/timestamp": 100 + np.arange(11) / 5, "data/depth": np.zeros((11, 16, 24), np.uint16)}
  path = write(tmp_path / "a.zarr", {name: BUFFER[name] for name in ("data/action", "meta/episode_ends")} | arrays)
  dataset = formats.open_dataset(path)
  data = dataset.read_episode(1)
  assert data.state[0].tolist() == [0.0] * 6 + [1.0] * 6 and dataset.cameras == ()
  np.testing.assert_allclose(data.timestamps, np.arange(5) / 5)
  with pytest.raises(Pi0RagError, match=r"'depth' is no RGB camera"):
    formats.open_dataset(path, fields=Fields(cameras=["depth"]))


def test_what_is_wrong_is_named(tmp_path):
  path = write(tmp_path / "a.zarr", BUFFER | {"data/action": BUFFER["data/action"][:10]})
  with pytest.raises(DamagedEpisode, match=r"'action', of the actions: it has 10 rows, episodes end at 11"):
    formats.open_dataset(path).read_episode(2)
  (path / "data/state/1.0").write_bytes(b"nothing")
  dataset = formats.open_dataset(path, skip_bad=True)
  assert [e for e, _ in dataset.iterate()] == [] and len(dataset.damaged) == 3
  write(tmp_path / "b.zarr", {"meta/episode_ends": np.asarray([4, 3])})
  with pytest.raises(Pi0RagError, match=r"episode_ends is int64\[2\] from \[4, 3\], allowed: whole numbers that rise"):
    formats.open_dataset(tmp_path / "b.zarr")
  with pytest.raises(Pi0RagError, match=r"holds several replay buffers, a.zarr, b.zarr: give the path of one"):
    formats.open_dataset(tmp_path)
