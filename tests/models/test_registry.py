import dataclasses
import json
import math
import pathlib

import jax
import pytest
from flax import traverse_util

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import adapters, pi0, pi0_fast, registry
from pi0rag_jax.models.pi0_config import PaliGemmaConfig

MANIFESTS = pathlib.Path(__file__).parents[2] / "third_party" / "openpi" / "manifests"
# openpi's count of parameters, and of those that its freeze filter lets train.
COUNTS = {
  "pi0": (3_238_048_528, 3_238_048_528),
  "pi0_lora": (3_288_036_112, 468_039_440),
  "pi0_lora_paligemma_only": (3_265_917_712, 757_386_000),
  "pi0_lora_expert_only": (3_260_166_928, 2_948_701_968),
  "pi05": (3_353_433_872, 3_353_433_872),
  "pi05_lora": (3_403_421_456, 466_957_072),
  "pi0_fast": (2_923_335_408, 2_923_335_408),
  "pi0_fast_droid": (2_923_335_408, 2_923_335_408),
  "pi0_fast_lora": (2_951_204_592, 442_672_880),
  "pi0_dummy": (429_337_808, 429_337_808),
  "pi05_dummy": (429_443_344, 429_443_344),
}


def config_of(manifest: str) -> PaliGemmaConfig:
  """Returns the configuration of a manifest: by its name, or a named one with other sizes."""
  if manifest == "pi0_fast_droid":
    return dataclasses.replace(registry.model("pi0_fast"), action_dim=8, action_horizon=10)
  if manifest.endswith("_dummy"):
    sizes = registry.gemma("dummy")
    return dataclasses.replace(registry.model(manifest.removesuffix("_dummy")), paligemma=sizes, expert=sizes)
  return registry.model(manifest)


def test_every_manifest_is_tested():
  assert {path.stem for path in MANIFESTS.glob("*.json")} == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_full_size_parameters_and_what_trains_are_openpis(name):
  config = config_of(name)
  shapes = jax.eval_shape(lambda rng: registry.init(config, rng), jax.random.key(0))
  seen = {path: {"shape": list(x.shape), "dtype": str(x.dtype), "trainable": adapters.is_trainable(path, config)}
          for path, x in traverse_util.flatten_dict(shapes, sep="/").items()}
  assert seen == json.loads((MANIFESTS / f"{name}.json").read_text())
  total = sum(math.prod(x["shape"]) for x in seen.values())
  assert (total, sum(math.prod(x["shape"]) for x in seen.values() if x["trainable"])) == COUNTS[name]


def test_each_family_has_its_network():
  assert isinstance(registry.network(registry.model("dummy")), pi0.Pi0)
  assert isinstance(registry.network(registry.model("dummy_fast")), pi0_fast.Pi0Fast)


def test_a_configuration_without_a_network_is_named():
  with pytest.raises(Pi0RagError, match=r"no network for a PaliGemmaConfig; .*: Pi0Config, Pi0FastConfig"):
    registry.network(PaliGemmaConfig(**vars(registry.model("dummy_fast"))))


@pytest.mark.parametrize(("lookup", "name", "near"), [
  (registry.model, "pi_0", "pi0"),
  (registry.gemma, "gemma_2B", "gemma_2b"),
  (registry.siglip, "So400m14", "So400m/14"),
])
def test_unknown_names_come_with_the_nearest(lookup, name, near):
  with pytest.raises(Pi0RagError, match=f"Did you mean '{near}'"):
    lookup(name)
