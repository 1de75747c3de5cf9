import dataclasses
import json

import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import registry
from pi0rag_jax.models.pi0 import Pi0Config


@pytest.mark.parametrize("name", sorted(registry.MODELS))
def test_json_brings_the_configuration_back(name):
  config = registry.model(name)
  assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


def changed(**fields):
  return {**registry.model("dummy").to_dict(), **fields}


@pytest.mark.parametrize(("data", "message"), [
  (changed(action_dims=7), "unknown field of model 'action_dims'. Did you mean 'action_dim'"),
  (changed(paligemma={"widths": 3}), "unknown field of model.paligemma 'widths'"),
  (changed(siglip={"width": 3}), r"model.siglip: missing field\(s\) depth, mlp_dim, num_heads"),
  (changed(action_dim="7"), "model.action_dim: expected int, got '7'"),
  (changed(action_dim=True), "model.action_dim: expected int, got True"),
  (changed(action_horizon=0), "model.action_horizon: expected at least 1, got 0"),
  (changed(image_size=[224, "x"]), r"model.image_size\[1\]: expected int"),
  (changed(image_size=[224]), "image_size must be"),
  (changed(image_keys="front"), "model.image_keys: expected a list"),
  (changed(dtype="float16"), "unknown dtype 'float16'"),
  (changed(expert=3), "expected an object of GemmaConfig fields"),
  (changed(expert={**registry.model("dummy").to_dict()["expert"], "lora_ffn": {"rank": 2, "alpha": "x"}}),
   r"model.expert.lora_ffn.alpha: expected float, got 'x'"),
  (changed(image_keys=[]), "image_keys is empty"),
])
def test_mistakes_are_named(data, message):
  with pytest.raises(Pi0RagError, match=message):
    Pi0Config.from_dict(data)


def test_experts_must_share_what_attention_shares():
  config = registry.model("dummy")
  with pytest.raises(Pi0RagError, match=r"paligemma.head_dim is 16, expert.head_dim is 8"):
    dataclasses.replace(config, expert=dataclasses.replace(config.expert, head_dim=8))
