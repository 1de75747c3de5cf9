"""Recorded openpi cases, by the functions that `python -m eval.parity` runs."""

import pathlib

from eval import parity

REPOSITORY = pathlib.Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "golden" / "pi0"
SHARED = REPOSITORY.parent / "shared" / "openpi" / "golden"


def test_every_output_of_openpis_pi0_agrees():
  found = list(parity.run_case(parity.load_case(GOLDEN)))
  assert {"prefix_out", "suffix_out", "kv_cache/k", "sample_actions/num_steps_10"} <= {d.name for d in found}
  assert [d for d in found if not d.passed] == []
