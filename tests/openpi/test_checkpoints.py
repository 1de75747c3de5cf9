import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.openpi import checkpoints, npz_source, orbax_source, sources

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
    assert np.asarray(seen[path]).tobytes() == np.asarray(array).tobytes(), path


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
  checkpoints.save_params(tmp_path / "run 50%" / "100", golden)
  assert_same(checkpoints.load_params(tmp_path / "run 50%" / "100", template=golden), golden)


@pytest.mark.parametrize("case", ["pi05", "pi05_lora_scaled", "pi0_fast", "pi0_fast_lora"])
def test_checkpoints_of_every_family_are_saved_and_loaded_again(case, tmp_path):
  loaded = checkpoints.load_params(REPOSITORY / "tests" / "golden" / case / "checkpoint")
  checkpoints.save_params(tmp_path, loaded)
  again = checkpoints.load_params(tmp_path, template=loaded)
  assert_same(again, loaded)
  stored = {str(array.dtype) for array in jax.tree.leaves(again)}
  assert stored == ({"float32", "bfloat16"} if "lora" in case else {"float32"})


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
  ("readme.txt", r"expected params/ with an Orbax _METADATA file, or model.safetensors, found readme.txt"),
  ("model.safetensors", "model.safetensors is damaged"),
  ("pt_224.npz", r"expected params/ with an Orbax"),
])
def test_a_foreign_directory_is_named(tmp_path, file, message):
  (tmp_path / file).write_text("x")
  with pytest.raises(Pi0RagError, match=message):
    checkpoints.load_params(tmp_path)


def test_a_run_with_several_steps_is_named(tmp_path):
  for step in ("100", "2000"):
    (tmp_path / step / "params").mkdir(parents=True)
  with pytest.raises(Pi0RagError, match=r"steps 100, 2000: give one of them, such as .*2000"):
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


def test_a_train_state_beside_it_and_mixed_types(tmp_path):
  tree = {"base": np.ones(3, ml_dtypes.bfloat16), "lora_a": np.ones(3, np.float32), "steps": np.array([3], np.int32)}
  checkpoints.save_checkpoint(tmp_path / "7", tree, {"arm": {"state": {"mean": [0.0], "std": [1.0]}}})
  (tmp_path / "7" / "train_state").mkdir()
  (tmp_path / "7" / "train_state" / "_METADATA").write_text("not looked at")
  assert_same(checkpoints.load_params(tmp_path / "7"), tree)
  assert checkpoints.load_norm_stats(tmp_path / "7", "arm")["state"]["std"] == [1.0]
  assert [path.name for path in tmp_path.iterdir()] == ["7"]
  with pytest.raises(Pi0RagError, match="7 exists"):
    checkpoints.save_checkpoint(tmp_path / "7", tree, {})


def test_arrays_of_many_pieces_survive(tmp_path, monkeypatch):
  monkeypatch.setattr(orbax_source, "PIECE_BYTES", 256)
  tree = {"a": np.arange(7 * 10 * 11, dtype=np.float32).reshape(7, 10, 11), "b": np.array([3.0], np.float32)}
  checkpoints.save_params(tmp_path, tree)
  assert_same(checkpoints.load_params(tmp_path), tree)
  assert_same(checkpoints.load_params(tmp_path, dtype="bfloat16"),
              {name: array.astype(ml_dtypes.bfloat16) for name, array in tree.items()})


def test_the_layout_before_ocdbt_loads_too(tmp_path):
  import orbax.checkpoint as ocp

  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
    checkpointer.save(tmp_path / "params", args=ocp.args.PyTreeSave({"params": TREE}))
  assert_same(checkpoints.load_params(tmp_path), TREE)


def test_a_lost_piece_is_damage_and_never_zeros(tmp_path):
  import orbax.checkpoint as ocp

  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
    checkpointer.save(tmp_path / "params", args=ocp.args.PyTreeSave({"params": TREE}))
  next((tmp_path / "params").glob("*kernel*/0*")).unlink()
  with pytest.raises(Pi0RagError, match="is damaged"):
    checkpoints.load_params(tmp_path)
  # Checkpoints that Orbax wrote before it said so lack the pieces that are all zero.
  metadata = tmp_path / "params" / "_METADATA"
  text = metadata.read_text()
  assert '"store_array_data_equal_to_fill_value": true' in text
  metadata.write_text(text.replace('"store_array_data_equal_to_fill_value": true', '"custom_metadata": null'))
  assert not checkpoints.load_params(tmp_path)["tower"]["kernel"].any()


def test_arrays_go_to_their_devices(golden):
  device = jax.devices()[0]
  mesh = jax.sharding.Mesh([device], ("batch",))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  everywhere = jax.tree.map(lambda _: sharding, golden)
  for placement in (device, sharding, everywhere):
    placed = checkpoints.load_params(GOLDEN, placement=placement)
    assert all(isinstance(array, jax.Array) for array in jax.tree.leaves(placed))
    assert_same(jax.device_get(placed), golden)
  assert jax.tree.leaves(placed)[0].sharding == sharding
  del everywhere["state_proj"]["bias"]
  with pytest.raises(Pi0RagError, match="no entry for state_proj/bias"):
    checkpoints.load_params(GOLDEN, placement=everywhere)


def fresh_model(golden):
  """An `init` for the golden tree with an adapter, in float32."""
  def init(key):
    flat = {path: jax.numpy.zeros(array.shape) for path, array in traverse_util.flatten_dict(golden).items()}
    flat["PaliGemma", "llm", "layers", "mlp", "linear_lora_a"] = jax.random.normal(key, (2, 4))
    return traverse_util.unflatten_dict(flat)
  return init


def test_adapters_start_fresh_and_all_else_is_loaded(golden):
  init, key = fresh_model(golden), jax.random.key(3)
  params = checkpoints.load_partial(GOLDEN, init, key, dtype="bfloat16")
  adapter = params["PaliGemma"]["llm"]["layers"]["mlp"].pop("linear_lora_a")
  np.testing.assert_array_equal(adapter, jax.random.normal(key, (2, 4)).astype("bfloat16"))
  assert_same(params, checkpoints.load_params(GOLDEN, dtype="bfloat16"))


def test_a_partial_load_takes_the_models_types_and_drops_what_it_lacks(golden, caplog):
  def init(key):
    return {"state_proj": {"bias": jax.numpy.zeros(32, "bfloat16")}}
  params = checkpoints.load_partial(GOLDEN, init, jax.random.key(0))
  assert params["state_proj"]["bias"].dtype == ml_dtypes.bfloat16
  assert "left out 49 arrays that the model lacks: PaliGemma/img" in caplog.text
  assert_same(checkpoints.load_params(GOLDEN, template=params, drop_extra=True, dtype="bfloat16"), params)


def test_a_partial_load_names_what_may_not_be_missing(golden, tmp_path):
  def init(key):
    return {"state_proj": {"bias": np.zeros(33), "offset": np.zeros(2)}}
  with pytest.raises(Pi0RagError, match=r"(?s)2 arrays differ.*missing state_proj/offset.*is \(32,\), the model wants"):
    checkpoints.load_partial(GOLDEN, init, jax.random.key(0))
  with pytest.raises(Pi0RagError, match=r"has none of the model's parameters; it has .* and 42 more"):
    checkpoints.load_partial(GOLDEN, lambda key: {"head": np.zeros(2)}, jax.random.key(0), fresh=checkpoints.ANY)
  checkpoints.save_params(tmp_path, {"w": np.ones(2), "w_lora_a": np.ones(2)})
  with pytest.raises(Pi0RagError, match="1 LoRA arrays that the model lacks, such as w_lora_a"):
    checkpoints.load_partial(tmp_path, lambda key: {"w": np.ones(2)}, jax.random.key(0))


def test_paligemmas_weights_start_a_model(golden, tmp_path):
  flat = traverse_util.flatten_dict(golden, sep="/")
  stored = {path.replace("PaliGemma", "params", 1): array for path, array in flat.items()
            if path.startswith("PaliGemma") and "_1" not in path}
  bias = "params/img/head/bias"
  stored[bias] = stored[bias].astype(ml_dtypes.bfloat16)
  kernel = "params/img/head/kernel"
  stored[kernel] = np.asfortranarray(stored[kernel])
  np.savez(tmp_path / "pt_224.npz", **stored)
  params = checkpoints.load_partial(tmp_path / "pt_224.npz", fresh_model(golden), jax.random.key(0),
                                    fresh=checkpoints.ANY)
  loaded = traverse_util.flatten_dict(params, sep="/")
  assert loaded.keys() == {*flat, "PaliGemma/llm/layers/mlp/linear_lora_a"}
  for path, array in flat.items():
    name = path.replace("PaliGemma", "params", 1)
    assert loaded[path].dtype == np.float32
    np.testing.assert_array_equal(loaded[path], stored.get(name, np.zeros_like(array)).astype(np.float32))


def test_a_wrong_npz_is_named(tmp_path):
  file = tmp_path / "other.npz"
  np.savez(file, **{"opt/step": np.zeros(1)})
  with pytest.raises(Pi0RagError, match=r"expected params/img/\.\.\. and params/llm/\.\.\., found opt/step\.npy"):
    checkpoints.load_params(file)
  np.savez(file, **{"params/img/head/bias": np.zeros(1000)})
  file.write_bytes(file.read_bytes()[:500])
  with pytest.raises(Pi0RagError, match=r"other\.npz is damaged"):
    checkpoints.load_params(file)
  assert npz_source.URL.endswith("pt_224.npz")


def test_the_largest_arrays_are_read_first_and_alone(monkeypatch):
  monkeypatch.setattr(sources, "GROUP_BYTES", 100)
  shapes = {name: jax.ShapeDtypeStruct((size,), np.float32) for name, size in
            {"small": 5, "huge": 90, "large": 26, "tiny": 1, "middle": 20}.items()}
  assert list(sources.groups(shapes, shapes)) == [["huge"], ["large"], ["middle", "small"], ["tiny"]]
  assert list(sources.groups(shapes, ["tiny", "small"])) == [["small", "tiny"]]


def test_memory_holds_the_result_and_one_group(monkeypatch):
  """Stored arrays are cast within `read`, and placed and let go before the next group is read."""
  import weakref

  monkeypatch.setattr(sources, "GROUP_BYTES", 100)
  given, placed = [], []

  class Counting:
    name = "test"
    shapes = {f"array_{n}": jax.ShapeDtypeStruct((10 + n,), np.float32) for n in range(20)}

    def read(self, paths, dtypes):
      assert not [array for array in given if array() is not None]
      assert len(given) == len(placed)
      arrays = {path: np.zeros(self.shapes[path].shape, dtypes[path]) for path in paths}
      given.extend(map(weakref.ref, arrays.values()))
      return arrays

  def place(array, path, placement):
    assert array.dtype == ml_dtypes.bfloat16
    placed.append(path)
    return path

  monkeypatch.setattr(sources, "place", place)
  sources.read_arrays(Counting(), dict.fromkeys(Counting.shapes, np.dtype(ml_dtypes.bfloat16)))
  assert sorted(placed) == sorted(Counting.shapes)


def test_pieces_are_let_go_as_they_are_cast(monkeypatch):
  """No more stored pieces are under way than AHEAD_BYTES, and one at least."""
  under_way, most = 0, 0

  class Future:
    def result(self):
      nonlocal under_way
      under_way -= 1
      return np.ones((2, 3), np.float32)

  class Piece:
    def read(self):
      nonlocal under_way, most
      under_way += 1
      most = max(most, under_way)
      return Future()

  class Store:
    shape = (8, 9)
    dtype = type("dtype", (), {"numpy_dtype": np.dtype(np.float32)})
    chunk_layout = type("layout", (), {"read_chunk": type("chunk", (), {"shape": (2, 3)})})

    def __getitem__(self, index):
      return Piece()

  for ahead, allowed in ((3 * 24, 3), (1, 1)):
    most = 0
    monkeypatch.setattr(orbax_source, "AHEAD_BYTES", ahead)
    array = orbax_source._read_array(Store(), ml_dtypes.bfloat16)
    assert array.dtype == ml_dtypes.bfloat16 and (array == 1).all() and (most, under_way) == (allowed, 0)


def test_the_home_folder_is_understood(golden, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "run").symlink_to(GOLDEN)
  assert_same(checkpoints.load_params("~/run"), golden)
  checkpoints.save_params("~/mine", TREE)
  assert_same(checkpoints.load_params(tmp_path / "mine"), TREE)


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt"])
def test_pointers_of_git_lfs_are_called_that(name, tmp_path):
  shutil.copytree(GOLDEN / "params", tmp_path / "params")
  (tmp_path / "params" / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
  with pytest.raises(Pi0RagError, match=rf"params/{name} is a git-lfs pointer: run git lfs pull"):
    checkpoints.load_params(tmp_path)
