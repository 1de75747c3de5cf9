"""Verdicts: which demonstrations are clean, and what they are told apart from."""

import judged
import numpy as np

from pi0rag_jax.curation import verdicts
from pi0rag_jax.data.episodes import CLEAN
from pi0rag_jax.sim import flaws

NAN = np.nan


def test_flaws_are_those_that_were_recorded(tmp_path):
  found = verdicts.flaws_of(judged.write(tmp_path / "judged"))
  assert found == [CLEAN, "near_miss", CLEAN, "near_miss", CLEAN] and flaws.Demonstrator.name == CLEAN
  np.testing.assert_array_equal(verdicts.clean(found), [1, 0, 1, 0, 1])
  assert np.isnan(verdicts.clean(verdicts.flaws_of(judged.write(tmp_path / "data", flaw="")))).all()


def test_each_flaw_is_compared_with_all_clean_ones():
  found = verdicts.comparisons([CLEAN, "detour", "", "hesitation", CLEAN])
  assert list(found) == [verdicts.ALL_FLAWS, "detour", "hesitation"]
  np.testing.assert_array_equal(found[verdicts.ALL_FLAWS], [1, 0, NAN, 0, 1])
  np.testing.assert_array_equal(found["detour"], [1, 0, NAN, NAN, 1])
