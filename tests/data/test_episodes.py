"""Episode files: what goes in comes out, and nothing broken comes out."""

import dataclasses
import os
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest

from pi0rag_jax.data import episodes, formats
from pi0rag_jax.errors import Pi0RagError


def make_episode(seed: int, frames: int = 5, **changes) -> episodes.Episode:
  rng = np.random.default_rng(seed)
  fields = {
    "images": {"base_0_rgb": rng.integers(0, 255, (frames, 8, 8, 3), dtype=np.uint8)},
    "state": rng.normal(size=(frames, 3)).astype(np.float32),
    "actions": rng.normal(size=(frames, 2)).astype(np.float32),
    "action_chunks": rng.normal(size=(frames, 4, 2)).astype(np.float32),
    "privileged": {"target_position": rng.normal(size=(frames, 3)).astype(np.float32)},
    "prompt": "pick up the cube",
    "task": "t",
    "condition": "nominal",
    "renderer": "raycast",
    "seed": seed,
    "success": seed % 2 == 0,
  }
  return episodes.Episode(**(fields | changes))


def test_round_trip_of_several_episodes_in_one_file(tmp_path):
  written = [make_episode(seed, frames=seed + 1, flaw=flaw) for seed, flaw in ((3, ""), (4, "near_miss"))]
  path = episodes.write_episodes(tmp_path / "some.h5", written)
  for before, after in zip(written, episodes.read_episodes(path), strict=True):
    for field in dataclasses.fields(episodes.Episode):
      old, new = getattr(before, field.name), getattr(after, field.name)
      if isinstance(old, dict):
        assert old.keys() == new.keys()
        for name in old:
          np.testing.assert_array_equal(old[name], new[name])
          assert old[name].dtype == new[name].dtype
      else:
        np.testing.assert_array_equal(old, new)


def test_an_existing_file_is_never_changed(tmp_path):
  path = episodes.write_episodes(tmp_path / "a.h5", [make_episode(0)])
  before = path.read_bytes()
  with pytest.raises(Pi0RagError, match="never changed"):
    episodes.write_episodes(path, [make_episode(1)])
  assert path.read_bytes() == before


def test_a_failing_writer_leaves_nothing(tmp_path):
  def broken():
    yield make_episode(0)
    raise RuntimeError("camera lost")

  with pytest.raises(RuntimeError):
    episodes.write_episodes(tmp_path / "a.h5", broken())
  with pytest.raises(Pi0RagError, match="seed 0 occurs twice"):
    episodes.write_episodes(tmp_path / "a.h5", [make_episode(0), make_episode(0)])
  assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_episode_file(tmp_path):
  script = f"""
import os, signal, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_episodes import make_episode
from pi0rag_jax.data import episodes
def some():
  yield make_episode(0)
  os.kill(os.getpid(), signal.SIGKILL)
episodes.write_episodes({str(tmp_path / "a.h5")!r}, some())
"""
  done = subprocess.run([sys.executable, "-c", script], check=False)
  assert done.returncode == -signal.SIGKILL
  assert not (tmp_path / "a.h5").exists()
  with pytest.raises(Pi0RagError):
    formats.open_dataset(tmp_path)


def test_truncated_foreign_and_newer_files_are_named(tmp_path):
  whole = episodes.write_episodes(tmp_path / "a.h5", [make_episode(0)]).read_bytes()
  cut = tmp_path / "cut.h5"
  cut.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(Pi0RagError, match=r"cut\.h5' is no whole HDF5 file"):
    list(episodes.read_episodes(cut))
  foreign = tmp_path / "foreign.h5"
  with h5py.File(foreign, "w") as file:
    file["observations"] = np.zeros(3)
  with pytest.raises(Pi0RagError, match="another project's"):
    list(episodes.read_episodes(foreign))
  with h5py.File(tmp_path / "a.h5", "a") as file:
    file.attrs["version"] = 99
  with pytest.raises(Pi0RagError, match="version 99; this code reads versions 1 and 2"):
    list(episodes.read_episodes(tmp_path / "a.h5"))
  with pytest.raises(Pi0RagError, match="no episode file"):
    list(episodes.read_episodes(tmp_path / "none.h5"))


def test_a_group_without_an_entry_is_named(tmp_path):
  path = episodes.write_episodes(tmp_path / "a.h5", [make_episode(0)])
  with h5py.File(path, "a") as file:
    del file["episode_000000/action_chunks"], file["episode_000000"].attrs["prompt"]
  with pytest.raises(Pi0RagError, match="lacks action_chunks, prompt"):
    list(episodes.read_episodes(path))


def test_groups_and_arrays_in_each_others_place_are_named(tmp_path):
  path = episodes.write_episodes(tmp_path / "a.h5", [make_episode(0)])
  with h5py.File(path, "a") as file:
    del file["episode_000000/state"]
    file.create_group("episode_000000/state")
  with pytest.raises(Pi0RagError, match=r"'/episode_000000/state' in '.*a\.h5' is no array"):
    list(episodes.read_episodes(path))
  with h5py.File(path, "a") as file:
    file["a_note"] = np.zeros(3)
  with pytest.raises(Pi0RagError, match=r"'/a_note' in .* is no group"):
    list(episodes.read_episodes(path))


def test_arrays_need_one_entry_per_frame():
  with pytest.raises(Pi0RagError, match="one entry per frame"):
    make_episode(0, state=np.zeros((4, 3), np.float32))
