import jax
import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.heads import base, lstm, mlp, presets, registry


def parameter_count(config):
  head = registry.make(config)
  shapes = jax.eval_shape(lambda key: base.init(head, key), jax.random.key(0))
  return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def test_presets_are_the_published_designs():
  config = presets.preset("robovlms")
  assert isinstance(config, lstm.LstmConfig)
  assert (config.hidden, config.layers, config.window, config.chunk) == (1024, 4, 16, 10)
  assert (config.regression, config.gripper_weight, config.action_dim) == ("huber", 0.01, 7)
  # Four layers of 4 x 1024 gates, 2048 inputs and a bias each, and less than two million elsewhere.
  assert 0 < parameter_count(config) - 4 * (4 * 1024 * 2048 + 4096) < 4e6
  config = presets.preset("mobile_vla", feature_dim=2048)
  assert isinstance(config, lstm.LstmConfig)
  assert (config.feature_dim, config.hidden, config.layers, config.window, config.chunk) == (2048, 512, 2, 8, 5)
  assert (config.regression, config.gripper_weight, config.dropout, config.gripper_index) == ("mse", 0.1, 0.1, (2,))


@pytest.mark.parametrize("name", sorted(registry.HEADS))
def test_configurations_survive_json(name):
  config = registry.head_config(name, feature_dim=6, action_dim=3, readout_dims=[8])
  data = registry.to_dict(config)
  assert data["head"] == name and data["readout_dims"] == [8]
  assert registry.from_dict(data) == config


def test_names_are_checked():
  with pytest.raises(Pi0RagError, match=r"unknown head 'ltsm'. Did you mean 'lstm'\?.*discrete, lstm, mlp"):
    registry.head_config("ltsm", feature_dim=6, action_dim=3)
  with pytest.raises(Pi0RagError, match=r"unknown field of the head 'lstm' 'layer'. Did you mean 'layers'\?"):
    registry.head_config("lstm", feature_dim=6, action_dim=3, layer=2)
  with pytest.raises(Pi0RagError, match=r"head 'mlp': missing field\(s\) feature_dim"):
    registry.head_config("mlp", action_dim=3)
  with pytest.raises(Pi0RagError, match=r"unknown head preset 'robovlm'"):
    presets.preset("robovlm")
  with pytest.raises(Pi0RagError, match="names its kind under 'head'"):
    registry.from_dict({"chunk": 2})


def test_a_head_of_ones_own(monkeypatch):
  monkeypatch.setattr(registry, "HEADS", dict(registry.HEADS))

  class OwnConfig(mlp.MlpConfig):
    pass

  registry.register_head("own", OwnConfig, mlp.MlpHead)
  config = registry.head_config("own", feature_dim=6, action_dim=3)
  assert isinstance(registry.make(config), mlp.MlpHead)
  with pytest.raises(Pi0RagError, match="there is a head 'own' already"):
    registry.register_head("own", OwnConfig, mlp.MlpHead)
