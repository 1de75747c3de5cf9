import functools
import json
import pathlib
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import pi0
from pi0rag_jax.openpi import checkpoints, torch_names, torch_source

safetensors = pytest.importorskip("safetensors.numpy")
MANIFESTS = pathlib.Path(__file__).parents[2] / "third_party" / "openpi" / "manifests"
PALIGEMMA = "paligemma_with_expert.paligemma."
GEMMA = "paligemma_with_expert.gemma_expert.model."
VISION = PALIGEMMA + "model.vision_tower.vision_model."
LANGUAGE = PALIGEMMA + "model.language_model."
SIZES = {"action_dim": 6, "action_horizon": 4, "max_token_len": 8, "vocab_size": 40, "dtype": "float32",
         "image_size": [28, 28],
         "siglip": {"width": 12, "depth": 3, "mlp_dim": 20, "num_heads": 3, "patch_size": 14},
         "paligemma": {"width": 16, "depth": 2, "mlp_dim": 24, "num_heads": 2, "num_kv_heads": 1, "head_dim": 6},
         "expert": {"width": 8, "depth": 2, "mlp_dim": 10, "num_heads": 2, "num_kv_heads": 1, "head_dim": 6}}


def published(*, pi05: bool) -> dict[str, tuple[int, ...]]:
  """The tensor names and shapes that openpi's converter writes for the full-size models, by hand."""
  seen = {
      VISION + "embeddings.patch_embedding.weight": (1152, 3, 14, 14),
      VISION + "embeddings.patch_embedding.bias": (1152,),
      VISION + "embeddings.position_embedding.weight": (256, 1152),
      VISION + "post_layernorm.weight": (1152,),
      VISION + "post_layernorm.bias": (1152,),
      PALIGEMMA + "model.multi_modal_projector.linear.weight": (2048, 1152),
      PALIGEMMA + "model.multi_modal_projector.linear.bias": (2048,),
      # The tied embedding under the name that safetensors keeps, and the expert's unused vocabulary head.
      PALIGEMMA + "lm_head.weight": (257152, 2048),
      "paligemma_with_expert.gemma_expert.lm_head.weight": (257152, 1024),
      LANGUAGE + "norm.weight": (2048,),
      "action_in_proj.weight": (1024, 32), "action_in_proj.bias": (1024,),
      "action_out_proj.weight": (32, 1024), "action_out_proj.bias": (32,),
  }
  for layer in range(27):
    name = f"{VISION}encoder.layers.{layer}."
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
      seen |= {f"{name}self_attn.{part}.weight": (1152, 1152), f"{name}self_attn.{part}.bias": (1152,)}
    for part in ("layer_norm1", "layer_norm2"):
      seen |= {f"{name}{part}.weight": (1152,), f"{name}{part}.bias": (1152,)}
    seen |= {name + "mlp.fc1.weight": (4304, 1152), name + "mlp.fc1.bias": (4304,),
             name + "mlp.fc2.weight": (1152, 4304), name + "mlp.fc2.bias": (1152,)}
  for prefix, width, hidden in ((LANGUAGE, 2048, 16384), (GEMMA, 1024, 4096)):
    for layer in range(18):
      name = f"{prefix}layers.{layer}."
      seen |= {name + "self_attn.q_proj.weight": (2048, width), name + "self_attn.k_proj.weight": (256, width),
               name + "self_attn.v_proj.weight": (256, width), name + "self_attn.o_proj.weight": (width, 2048),
               name + "mlp.gate_proj.weight": (hidden, width), name + "mlp.up_proj.weight": (hidden, width),
               name + "mlp.down_proj.weight": (width, hidden)}
      seen |= {f"{LANGUAGE}layers.{layer}.{norm}.weight": (2048,)
               for norm in ("input_layernorm", "post_attention_layernorm")}
  norms = [GEMMA + "norm"] + [f"{GEMMA}layers.{layer}.{norm}" for layer in range(18)
                              for norm in ("input_layernorm", "post_attention_layernorm")]
  if pi05:
    seen |= {f"{norm}.dense.weight": (3072, 1024) for norm in norms} | {f"{norm}.dense.bias": (3072,) for norm in norms}
    seen |= {f"{name}.weight": (1024, 1024) for name in ("time_mlp_in", "time_mlp_out")}
    seen |= {f"{name}.bias": (1024,) for name in ("time_mlp_in", "time_mlp_out")}
  else:
    seen |= {f"{norm}.weight": (1024,) for norm in norms}
    seen |= {"state_proj.weight": (1024, 32), "state_proj.bias": (1024,),
             "action_time_mlp_in.weight": (1024, 2048), "action_time_mlp_in.bias": (1024,),
             "action_time_mlp_out.weight": (1024, 1024), "action_time_mlp_out.bias": (1024,)}
  return seen


# Written apart from the layouts that they invert, in the words of the converter: array of one layer, heads -> tensor.
INVERSE = {
    torch_names.same: lambda x: x,
    torch_names.transposed: lambda x: x.T,
    torch_names.patches: lambda x: np.moveaxis(x, (3, 2, 0, 1), (0, 1, 2, 3)),
    torch_names.positions: lambda x: x[0],
    torch_names.split_bias: np.ravel,
    torch_names.split_outputs: lambda x: x.reshape(x.shape[0], -1).T,
    torch_names.split_outputs_first: lambda x: np.concatenate([head.T for head in x]),
    torch_names.split_inputs: lambda x: np.concatenate(list(x)).T,
}


def to_torch(params, *, pi05: bool, embedding=torch_names.TIED_EMBEDDING) -> dict[str, np.ndarray]:
  """Returns the tensors of openpi's PyTorch port for a tree of its JAX parameters."""
  flat = traverse_util.flatten_dict(params, sep="/")
  tensors = {}
  for rule in torch_names.rules(pi05=pi05, embedding=embedding):
    array = flat.pop(rule.path)
    for layer, one in enumerate(array) if rule.layered else [(0, array)]:
      for name, part in zip(rule.names, one if len(rule.names) > 1 else [one]):
        tensors[name.format(layer)] = np.ascontiguousarray(INVERSE[rule.layout](part))
  assert not flat, f"no rule for {sorted(flat)}"
  return tensors


@functools.cache
def model(pi05: bool):
  """A small model's random parameters; a different number in every place."""
  shapes = jax.eval_shape(functools.partial(pi0.init, pi0.Pi0Config.from_dict({**SIZES, "pi05": pi05})),
                          jax.random.key(0))
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)


def assert_same(seen, wanted):
  seen, wanted = (traverse_util.flatten_dict(tree, sep="/") for tree in (seen, wanted))
  assert seen.keys() == wanted.keys()
  for path, array in wanted.items():
    assert seen[path].dtype == array.dtype, path
    np.testing.assert_array_equal(seen[path], array, err_msg=path)


@pytest.mark.parametrize(("name", "tensors"), [("pi0", 777), ("pi05", 812)])
def test_the_published_tensors_make_openpis_full_size_tree(name, tensors, monkeypatch):
  header = {tensor: jax.ShapeDtypeStruct(shape, ml_dtypes.bfloat16)
            for tensor, shape in published(pi05=name == "pi05").items()}
  assert len(header) == tensors
  monkeypatch.setattr(torch_source.TorchSource, "_read_header", lambda self: header)
  source = torch_source.TorchSource(pathlib.Path("model.safetensors"))
  manifest = json.loads((MANIFESTS / f"{name}.json").read_text())
  assert {path: list(x.shape) for path, x in source.shapes.items()} == {p: x["shape"] for p, x in manifest.items()}
  assert {x.dtype for x in source.shapes.values()} == {np.dtype(ml_dtypes.bfloat16)}
  used = [tensor for rule in source._rules.values() for _, tensor in source._indexed_names(rule)]
  assert len(used) == len(set(used)) and set(used) == header.keys() - torch_names.UNUSED


@pytest.mark.parametrize("pi05", [False, True])
@pytest.mark.parametrize("embedding", [torch_names.EMBEDDING, torch_names.TIED_EMBEDDING])
def test_a_port_loads_as_the_model_that_it_came_from(pi05, embedding, tmp_path):
  tensors = to_torch(model(pi05), pi05=pi05, embedding=embedding)
  tensors["paligemma_with_expert.gemma_expert.lm_head.weight"] = np.zeros((40, 8), np.float32)
  safetensors.save_file(tensors, tmp_path / "model.safetensors")
  assert_same(checkpoints.load_params(tmp_path, template=model(pi05)), model(pi05))
  assert_same(checkpoints.load_params(tmp_path / "model.safetensors", template=model(pi05), dtype="bfloat16"),
              jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), model(pi05)))


def test_both_names_of_the_embedding_and_mixed_types(tmp_path):
  tensors = to_torch(model(False), pi05=False, embedding=torch_names.EMBEDDING)
  tensors = {name: x if "norm" in name else x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()}
  tensors[torch_names.TIED_EMBEDDING] = tensors[torch_names.EMBEDDING]
  safetensors.save_file(tensors, tmp_path / "model.safetensors")
  wanted = {path: x if "norm" in path.lower() else x.astype(ml_dtypes.bfloat16)
            for path, x in traverse_util.flatten_dict(model(False), sep="/").items()}
  assert_same(checkpoints.load_params(tmp_path, template=model(False)), traverse_util.unflatten_dict(wanted, sep="/"))


def test_tensors_of_another_model_are_named(tmp_path):
  tensors = to_torch(model(False), pi05=False)
  del tensors[f"{LANGUAGE}layers.1.mlp.up_proj.weight"]
  tensors["value_head.weight"] = np.zeros(1, np.float32)
  safetensors.save_file(tensors, tmp_path / "model.safetensors")
  with pytest.raises(Pi0RagError) as caught:
    checkpoints.load_params(tmp_path)
  message = str(caught.value)
  assert "2 tensors differ" in message and "unexpected value_head.weight" in message
  assert f"missing {LANGUAGE}layers.1.mlp.up_proj.weight" in message
  safetensors.save_file({"weight": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
  with pytest.raises(Pi0RagError, match=r"is no pi0 or pi0.5 of openpi's PyTorch port"):
    checkpoints.load_params(tmp_path)


def test_shapes_that_do_not_fit_are_named(tmp_path):
  tensors = to_torch(model(False), pi05=False)
  safetensors.save_file(tensors, tmp_path / "model.safetensors")
  with pytest.raises(Pi0RagError, match=r"is \(12,\), which 16 heads cannot share|is \(12, 12\), which 16 heads"):
    checkpoints.load_params(tmp_path)
  name = f"{LANGUAGE}layers.1.mlp.up_proj.weight"
  safetensors.save_file({**tensors, name: np.zeros((23, 16), np.float32)}, tmp_path / "model.safetensors")
  with pytest.raises(Pi0RagError, match=r"layers.1.mlp.up_proj.weight is \(23, 16\), .*gate_proj.weight is \(24, 16\)"):
    checkpoints.load_params(tmp_path, template=model(False))
  safetensors.save_file({**tensors, name: np.zeros((24, 16), np.int32)}, tmp_path / "model.safetensors")
  with pytest.raises(Pi0RagError, match="has tensors of type I32; expected F64"):
    checkpoints.load_params(tmp_path)


def test_a_truncated_file_and_a_missing_package_are_named(tmp_path, monkeypatch):
  file = tmp_path / "model.safetensors"
  safetensors.save_file(to_torch(model(False), pi05=False), file)
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(Pi0RagError, match="damaged or was not copied whole"):
    checkpoints.load_params(tmp_path)
  monkeypatch.setitem(sys.modules, "safetensors", None)
  with pytest.raises(Pi0RagError, match=r"pip install 'pi0rag-jax\[torch\]'"):
    checkpoints.load_params(tmp_path)


OLDER = {LANGUAGE: PALIGEMMA + "language_model.model.", PALIGEMMA + "lm_head.": PALIGEMMA + "language_model.lm_head.",
         VISION: PALIGEMMA + "vision_tower.vision_model.",
         PALIGEMMA + "model.multi_modal_projector.": PALIGEMMA + "multi_modal_projector."}


def older(name: str) -> str:
  """The name of a tensor before transformers 4.52."""
  new = next((new for new in OLDER if name.startswith(new)), None)
  return name if new is None else OLDER[new] + name.removeprefix(new)


@pytest.mark.parametrize("pi05", [False, True])
@pytest.mark.parametrize(("prefix", "rename"), [
  ("model.", str), ("module.", str), ("_orig_mod.model.", str), ("model.", older), ("", older)])
def test_wrapped_and_older_names_load(prefix, rename, pi05, tmp_path):
  tensors = {prefix + rename(name): array for name, array in to_torch(model(pi05), pi05=pi05).items()}
  tensors |= {f"{name}.buffer_action.mean": np.zeros(3, np.float32)
              for name in ("normalize_inputs", "normalize_targets", "unnormalize_outputs")}
  safetensors.save_file(tensors, tmp_path / "model.safetensors")
  assert_same(checkpoints.load_params(tmp_path, template=model(pi05)), model(pi05))


def test_both_kinds_of_wrong_names_are_shown_and_none_twice(tmp_path):
  tensors = to_torch(model(False), pi05=False)
  wrong = {f"other.{name}" if "layers" in name else name: array for name, array in tensors.items()}
  safetensors.save_file(wrong, tmp_path / "model.safetensors")
  with pytest.raises(Pi0RagError) as caught:
    checkpoints.load_params(tmp_path)
  shown = str(caught.value).splitlines()[1:]
  assert sum("missing" in line for line in shown) == sum("unexpected other." in line for line in shown) == 4
  twice = tensors | {older(name): array for name, array in tensors.items()}
  safetensors.save_file(twice, tmp_path / "model.safetensors")
  with pytest.raises(Pi0RagError, match=r"has .* twice, as "):
    checkpoints.load_params(tmp_path)


def test_a_pointer_of_git_lfs_is_called_that(tmp_path):
  (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
  with pytest.raises(Pi0RagError, match=r"model.safetensors is a git-lfs pointer: run git lfs pull"):
    checkpoints.load_params(tmp_path)
