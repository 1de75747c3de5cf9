"""Digests: every change of a checkpoint's files is found, and named in one line."""

import shutil

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi import checkpoints, digests

PARAMS = {"layer": {"kernel": np.arange(2000, dtype=np.float32), "bias": np.ones(3, np.float32)}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  directory = tmp_path_factory.mktemp("saved")
  checkpoints.save_params(directory, PARAMS)
  return directory


def test_no_flipped_byte_loads_other_weights(saved, tmp_path):
  """The parameters that load are those that were saved, or none."""
  rng = np.random.default_rng(0)
  paths = sorted(path for path in (saved / "params").rglob("*") if path.is_file() and path.stat().st_size)
  refused = 0
  for number in range(150):
    path = paths[number % len(paths)]
    directory = tmp_path / str(number)
    shutil.copytree(saved, directory)
    flipped = directory / path.relative_to(saved)
    content = bytearray(flipped.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    flipped.write_bytes(content)
    try:
      loaded = checkpoints.load_params(directory)
    except Pi0RagError as error:
      assert "\n" not in str(error)
      refused += 1
    else:
      assert path.name == digests.FILE_NAME
      np.testing.assert_array_equal(loaded["layer"]["kernel"], PARAMS["layer"]["kernel"])
  assert refused > 150 * (len(paths) - 1) // len(paths)


def test_missing_and_cut_files_are_named(saved, tmp_path):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  (tmp_path / "params/_METADATA").unlink()
  (tmp_path / "params/manifest.ocdbt").write_bytes(b"")
  with pytest.raises(digests.DamagedCheckpoint, match=r"params is damaged or was not copied whole: _METADATA is "
                     r"missing, manifest.ocdbt has 0 bytes of \d+$"):
    checkpoints.load_params(tmp_path)


def test_a_checkpoint_without_digests_is_not_checked(saved, tmp_path):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  (tmp_path / "params" / digests.FILE_NAME).unlink()
  np.testing.assert_array_equal(checkpoints.load_params(tmp_path)["layer"]["bias"], PARAMS["layer"]["bias"])


def test_a_directory_within_answers_for_itself(tmp_path):
  (tmp_path / "within").mkdir()
  (tmp_path / "within/file").write_text("content")
  digests.write(tmp_path / "within")
  digests.write(tmp_path)
  digests.check(tmp_path)
  (tmp_path / "within/file").write_text("another")
  with pytest.raises(digests.DamagedCheckpoint, match="within/file has other content"):
    digests.check(tmp_path)


def test_a_pointer_is_called_that(saved, tmp_path):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  (tmp_path / "params/manifest.ocdbt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
  with pytest.raises(digests.DamagedCheckpoint, match="git lfs pull"):
    checkpoints.load_params(tmp_path)
