import functools

import jax
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.backbones import base, mobilenet, mobilenet_torch


@pytest.fixture(scope="module")
def params():
  shapes = jax.eval_shape(base.backbone("light", image_size=(32, 32)).init, jax.random.key(0))
  return jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def tensors(params):
  """Random tensors in torch's layout, with what a trunk has no use for."""
  rng = np.random.default_rng(0)
  found = {"classifier.0.weight": np.zeros((1024, 576)), "features.0.1.num_batches_tracked": np.array(3)}
  for name, path in mobilenet_torch.tensor_names():
    shape = functools.reduce(lambda node, key: node[key], path.split("/"), params).shape
    if path.endswith("kernel"):
      shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else (*shape[::-1], 1, 1)
    found[name] = rng.uniform(0.1, 1.0, shape).astype(np.float32)
  return found


def test_the_names_are_torchvisions(tensors):
  # Of the first block, which has no expansion, of one without squeeze, and the last ones.
  assert tensors["features.1.block.0.0.weight"].shape == (16, 1, 3, 3)
  assert tensors["features.1.block.1.fc1.weight"].shape == (8, 16, 1, 1)
  assert tensors["features.2.block.2.0.weight"].shape == (24, 72, 1, 1)
  assert tensors["features.11.block.3.1.running_var"].shape == (96,)
  assert tensors["features.12.0.weight"].shape == (576, 96, 1, 1)
  # 34 convolutions with their norms, 9 pairs of squeezing layers, and the two that are unused.
  assert len(tensors) == 34 * 5 + 9 * 4 + 2


def test_weights_reach_their_places(params, tensors):
  loaded = mobilenet_torch.with_trunk(params, tensors)
  assert jax.tree.structure(loaded) == jax.tree.structure(params)
  assert all(np.asarray(x).any() for x in jax.tree.leaves(loaded["params"]["trunk"]))
  image_CHW = np.random.default_rng(1).normal(size=(3, 6, 6)).astype(np.float32)
  stem = {name: loaded[name]["trunk"]["stem"] for name in ("params", "batch_stats")}
  got = mobilenet.ConvNorm(16, 3, 2).apply(stem, image_CHW.transpose(1, 2, 0)[None])[0]
  # The convolution as torch defines it, at one place away from the border: rows 1 to 3, columns 3 to 5.
  raw_O = np.einsum("ochw,chw->o", tensors["features.0.0.weight"], image_CHW[:, 1:4, 3:6])
  scale, bias, mean, var = (tensors[f"features.0.1.{n}"] for n in ("weight", "bias", "running_mean", "running_var"))
  np.testing.assert_allclose(got[1, 2], (raw_O - mean) / np.sqrt(var + 1e-3) * scale + bias, rtol=1e-4, atol=1e-4)


def test_other_state_dicts_are_refused(params, tensors):
  less = {name: value for name, value in tensors.items() if name != "features.0.0.weight"}
  with pytest.raises(Pi0RagError, match=r"missing \['features.0.0.weight'\] of 1, unknown \['conv'\] of 1"):
    mobilenet_torch.with_trunk(params, less | {"conv": np.zeros(1)})
  with pytest.raises(Pi0RagError, match=r"features.0.0.weight becomes \(3, 3, 3, 8\), the trunk takes"):
    mobilenet_torch.with_trunk(params, tensors | {"features.0.0.weight": np.zeros((8, 3, 3, 3))})
