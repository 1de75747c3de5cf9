"""The decoder of openpi's learned quantizer: the recorded actions are those of its own module with the same weights."""

import json
import pathlib
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots import fsq

CONFIG = {"embed_dim": 64, "data_dim": 3, "data_horizon": 6, "num_tokens": 4, "num_layers": 2,
          "target_codebook_size": 1024, "mlp_ratio": 2.0, "bound": None, "use_state_conditioning": False}
CODES = [3, 1000, 517, 64]
RECORDED = json.loads((pathlib.Path(__file__).parent / "recorded" / "fsq.json").read_text())


def make_params(causal: bool) -> dict:
  """Returns weights that depend on nothing but their paths and shapes."""
  sizes = {key: CONFIG[key] for key in (*fsq.CONFIG_FIELDS, "mlp_ratio")}
  module = fsq.FsqDecoder(**sizes, causal=causal)
  shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 4), np.int32))["params"]

  def fill(path, shape):
    draw = np.random.default_rng(zlib.crc32("/".join(path).encode())).normal(size=shape.shape)
    return (draw / np.sqrt(max(shape.shape[0] if shape.shape else 1, 1))).astype(np.float32)

  return traverse_util.unflatten_dict({p: fill(p, s) for p, s in traverse_util.flatten_dict(shapes).items()})


@pytest.mark.parametrize("causal", [False, True])
def test_recorded_actions(causal):
  codec = fsq.FsqCodec({**CONFIG, "causal": causal}, make_params(causal))
  np.testing.assert_allclose(codec.decode(CODES, 6, 3), RECORDED[str(causal)], atol=1e-5)


def test_wrong_numbers_of_codes_or_actions_give_zeros():
  codec = fsq.FsqCodec(CONFIG, make_params(False))
  np.testing.assert_array_equal(codec.decode(CODES[:3], 6, 3), np.zeros((6, 3)))
  np.testing.assert_array_equal(codec.decode(CODES, 5, 3), np.zeros((5, 3)))


def test_openpis_layout_is_loaded(tmp_path):
  params = make_params(False)
  with ocp.CheckpointManager(tmp_path / "tokenizer") as manager:
    manager.save(1200, args=ocp.args.Composite(params=ocp.args.StandardSave(params), config=ocp.args.JsonSave(CONFIG)))
  codec = fsq.FsqCodec.load(tmp_path / "tokenizer")
  np.testing.assert_allclose(codec.decode(CODES, 6, 3), RECORDED["False"], atol=1e-5)


@pytest.mark.parametrize(("changes", "message"), [
  ({"target_codebook_size": 100}, "target_codebook_size is 100; allowed"), ({"num_tokens": None}, "lacks num_tokens"),
  ({"use_state_conditioning": True}, "conditioned on the state")])
def test_other_quantizers_are_refused(changes, message):
  with pytest.raises(Pi0RagError, match=message):
    fsq.FsqCodec({**CONFIG, **changes}, {})


def test_an_empty_directory_is_named(tmp_path):
  with pytest.raises(Pi0RagError, match="holds no quantizer: expected a folder named by a step"):
    fsq.FsqCodec.load(tmp_path)
