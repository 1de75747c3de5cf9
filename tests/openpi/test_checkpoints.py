import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi import checkpoints

REPOSITORY = pathlib.Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "golden" / "pi0" / "checkpoint"
WITHOUT_VALUE = REPOSITORY.parent / "shared" / "openpi" / "golden" / "pi0" / "checkpoint_novalue"
TREE = {"tower": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}, "steps": np.array([3], np.int32)}


@pytest.fixture(scope="module")
def golden():
  return checkpoints.load_params(GOLDEN)


def assert_same(seen, wanted):
  seen, wanted = traverse_util.flatten_dict(seen), traverse_util.flatten_dict(wanted)
  assert seen.keys() == wanted.keys()
  for path, array in wanted.items():
    assert seen[path].dtype == array.dtype, path
    np.testing.assert_array_equal(seen[path], array)


def test_openpis_checkpoint_loads_as_plain_arrays(golden):
  flat = traverse_util.flatten_dict(golden, sep="/")
  assert len(flat) == 50 and sum(array.size for array in flat.values()) == 255_504
  assert {type(array) for array in flat.values()} == {np.ndarray}
  assert flat["PaliGemma/llm/layers/attn/q_einsum_1/w"].shape == (3, 4, 32, 16)


def test_the_params_directory_will_do(golden):
  assert_same(checkpoints.load_params(GOLDEN / "params"), golden)


@pytest.mark.skipif(not WITHOUT_VALUE.exists(), reason="needs ../shared")
def test_the_layout_without_value_keys_loads_alike(golden):
  assert_same(checkpoints.load_params(WITHOUT_VALUE), golden)


def test_saved_and_loaded_again(golden, tmp_path):
  checkpoints.save_params(tmp_path / "run" / "100", golden)
  assert_same(checkpoints.load_params(tmp_path / "run" / "100", template=golden), golden)


def test_only_floats_are_cast(tmp_path):
  checkpoints.save_params(tmp_path, TREE)
  loaded = checkpoints.load_params(tmp_path, dtype="bfloat16")
  assert loaded["tower"]["kernel"].dtype == ml_dtypes.bfloat16 and loaded["steps"].dtype == np.int32


def test_bfloat16_survives_the_disk(tmp_path):
  tree = {"kernel": np.array([0.5, -3.0], ml_dtypes.bfloat16)}
  checkpoints.save_params(tmp_path, tree)
  assert_same(checkpoints.load_params(tmp_path), tree)


def test_saving_does_not_overwrite(tmp_path):
  checkpoints.save_params(tmp_path / "params", TREE)
  with pytest.raises(Pi0RagError, match=r"params exists: remove it first"):
    checkpoints.save_params(tmp_path, TREE)
  assert_same(checkpoints.load_params(tmp_path), TREE)


def test_a_template_names_what_differs(golden, tmp_path):
  wanted = traverse_util.flatten_dict(golden)
  wanted["new_head", "kernel"] = np.zeros((2, 2))
  wanted["state_proj", "bias"] = np.zeros(33)
  del wanted["action_out_proj", "bias"]
  with pytest.raises(Pi0RagError) as caught:
    checkpoints.load_params(GOLDEN, template=traverse_util.unflatten_dict(wanted))
  message = str(caught.value)
  assert "3 arrays differ" in message
  assert "missing new_head/kernel (2, 2)" in message
  assert "unexpected action_out_proj/bias (16,)" in message
  assert "state_proj/bias is (32,), the model wants (33,)" in message


def test_a_long_list_of_differences_is_cut(golden):
  with pytest.raises(Pi0RagError, match="50 arrays differ") as caught:
    checkpoints.load_params(GOLDEN, template={})
  assert str(caught.value).count("unexpected") == checkpoints.SHOWN_MISMATCHES


def test_a_missing_directory_is_named(tmp_path):
  with pytest.raises(Pi0RagError, match=r"no checkpoint directory at .*nowhere"):
    checkpoints.load_params(tmp_path / "nowhere")


@pytest.mark.parametrize(("file", "message"), [
  ("readme.txt", r"expected params/ with an Orbax _METADATA file, found readme.txt"),
  ("model.safetensors", "PyTorch port"),
])
def test_a_foreign_directory_is_named(tmp_path, file, message):
  (tmp_path / file).write_text("x")
  with pytest.raises(Pi0RagError, match=message):
    checkpoints.load_params(tmp_path)


@pytest.mark.parametrize("lost", ["manifest.ocdbt", "ocdbt.process_0", "d"])
def test_an_incomplete_copy_is_called_so(tmp_path, lost):
  copy = shutil.copytree(GOLDEN, tmp_path / "copy")
  path = copy / "params" / lost
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  with pytest.raises(Pi0RagError, match="is damaged or was not copied whole"):
    checkpoints.load_params(copy)


def test_truncated_data_is_called_damaged(tmp_path):
  copy = shutil.copytree(GOLDEN, tmp_path / "copy")
  for file in (copy / "params" / "ocdbt.process_0" / "d").iterdir():
    file.write_bytes(file.read_bytes()[:100])
  with pytest.raises(Pi0RagError, match="is damaged"):
    checkpoints.load_params(copy)


def test_a_foreign_item_is_named(tmp_path):
  import orbax.checkpoint as ocp

  ocp.PyTreeCheckpointer().save(tmp_path / "params", {"step": np.ones(1), "model": np.ones(1)})
  with pytest.raises(Pi0RagError, match=r"one top-level key 'params', found \['model', 'step'\]"):
    checkpoints.load_params(tmp_path)
