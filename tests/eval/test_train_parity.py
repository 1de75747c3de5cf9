"""Recorded training steps of openpi, by the functions that `python -m eval.parity` runs."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from eval import train_parity
from pi0rag_jax.errors import Pi0RagError

REPOSITORY = pathlib.Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "golden" / "train_pi0_lora"
SHARED = REPOSITORY.parent / "shared" / "openpi" / "golden"


def test_three_steps_of_openpi_with_adapters_agree():
  found = list(train_parity.run_case(GOLDEN))
  names = {d.name for d in found}
  assert {"trainable", "grads_step0", "step2/loss", "step2/grad_norm", "step2/lr", "params_step3"} <= names
  assert [d for d in found if not d.passed] == []


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
@pytest.mark.parametrize("name", ["train_pi0", "train_pi05", "train_pi0_fast"])
def test_three_steps_of_openpi_with_an_average_agree(name):
  found = list(train_parity.run_case(SHARED / name))
  assert "ema_params_step3" in {d.name for d in found}
  assert [d for d in found if not d.passed] == []


def test_another_schedule_is_seen(tmp_path):
  """A recording of another schedule is over its gate: the steps are really taken."""
  copy = shutil.copytree(GOLDEN, tmp_path / "case")
  facts = json.loads((copy / "case.json").read_text())
  facts["lr_schedule"]["warmup_steps"] = 3
  (copy / "case.json").write_text(json.dumps(facts))
  failed = {d.name for d in train_parity.run_case(copy) if not d.passed}
  assert {"step0/lr", "params_step3", "params_step3/way"} <= failed and "grads_step0" not in failed


def test_a_part_of_a_recording_is_named(tmp_path):
  copy = shutil.copytree(GOLDEN, tmp_path / "case")
  (copy / "grads_step0.npz").unlink()
  with pytest.raises(Pi0RagError, match=r"no whole recording of training steps: grads_step0.npz missing"):
    list(train_parity.run_case(copy))
  assert train_parity.is_train_case(copy)
  np.testing.assert_equal(train_parity.is_train_case(tmp_path), False)
