import functools
import json
import math
import pathlib

import jax
import pytest
from flax import traverse_util

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import pi0, registry

MANIFESTS = pathlib.Path(__file__).parents[2] / "third_party" / "openpi" / "manifests"


@pytest.mark.parametrize(("name", "parameters"), [("pi0", 3_238_048_528), ("pi05", 3_353_433_872)])
def test_full_size_parameters_are_openpis(name, parameters):
  shapes = jax.eval_shape(functools.partial(pi0.init, registry.model(name)), jax.random.key(0))
  seen = {path: {"shape": list(x.shape), "dtype": str(x.dtype)}
          for path, x in traverse_util.flatten_dict(shapes, sep="/").items()}
  assert seen == json.loads((MANIFESTS / f"{name}.json").read_text())
  assert sum(math.prod(x["shape"]) for x in seen.values()) == parameters


@pytest.mark.parametrize(("lookup", "name", "near"), [
  (registry.model, "pi_0", "pi0"),
  (registry.gemma, "gemma_2B", "gemma_2b"),
  (registry.siglip, "So400m14", "So400m/14"),
])
def test_unknown_names_come_with_the_nearest(lookup, name, near):
  with pytest.raises(Pi0RagError, match=f"Did you mean '{near}'"):
    lookup(name)
