"""Mixtures of demonstrators: as many of each kind as was asked for, the same every time."""

import collections

import numpy as np
import pytest

from pi0rag_jax.curation import mixtures
from pi0rag_jax.errors import Pi0RagError

FLAWS = ["clean"] * 10 + ["detour"] * 6 + ["near_miss"] * 5 + [""] * 3


def drawn(**options):
  kept_J = mixtures.mixture(FLAWS, **options)
  assert np.array_equal(kept_J, mixtures.mixture(FLAWS, **options))
  return collections.Counter(flaw for flaw, kept in zip(FLAWS, kept_J) if kept)


def test_as_many_of_each_kind_as_was_asked_for():
  assert drawn(share=0.6, episodes=10, kinds=["detour"]) == {"clean": 4, "detour": 6}
  assert drawn(share=0.5, episodes=10) == {"clean": 5, "detour": 3, "near_miss": 2}
  assert drawn(share=0.0, episodes=3) == {"clean": 3}
  assert not np.array_equal(*(mixtures.mixture(FLAWS, share=0.5, episodes=8, seed=seed) for seed in (0, 1)))


@pytest.mark.parametrize(("options", "message"), [
  ({"share": 0.7, "episodes": 10, "kinds": ["detour"]}, "takes 7 episodes that are 'detour', the data set has 6"),
  ({"share": 0.5, "episodes": 4, "kinds": ["detours"]}, "unknown flaw in the data set 'detours'"),
  ({"share": 1.2, "episodes": 4}, "a mixture of 4 episodes, a share of 1.2 flawed")])
def test_what_cannot_be_mixed_is_told(options, message):
  with pytest.raises(Pi0RagError, match=message):
    mixtures.mixture(FLAWS, **options)


def test_nobody_judged():
  with pytest.raises(Pi0RagError, match="no episode of the data set is known to be flawed"):
    mixtures.mixture(["clean"] * 4, share=0.5, episodes=2)
