import jax
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models import family, registry


def test_a_family_reads_its_sizes_back():
  for name, model in (("pi0", "dummy"), ("pi05", "pi05"), ("pi0_fast", "dummy_fast")):
    sizes = registry.model(model)
    assert family.of(sizes) is family.named(name) and family.named(name).read_sizes(sizes.to_dict()) == sizes
  assert family.named("pi05").read_sizes(registry.model("dummy").to_dict()).pi05


def test_unknown_names_and_sizes_are_told():
  with pytest.raises(Pi0RagError, match=r"unknown model family 'pi0_fats'\. Did you mean 'pi0_fast'"):
    family.named("pi0_fats")


@pytest.mark.parametrize("model", ["dummy", "dummy_fast"])
def test_fresh_parameters_are_the_networks(model):
  sizes = registry.model(model)
  assert jax.eval_shape(lambda key: family.of(sizes).init(sizes, key), jax.random.key(0))["PaliGemma"]
