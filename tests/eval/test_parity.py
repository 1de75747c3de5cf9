"""Recorded openpi cases, by the functions that `python -m eval.parity` runs."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from eval import parity
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.models.lora import LoraConfig

REPOSITORY = pathlib.Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "golden" / "pi0"
SHARED = REPOSITORY.parent / "shared" / "openpi" / "golden"


def test_every_output_of_openpis_pi0_agrees():
  found = list(parity.run_case(parity.load_case(GOLDEN)))
  assert {"prefix_out", "suffix_out", "kv_cache/k", "sample_actions/num_steps_10"} <= {d.name for d in found}
  assert [d for d in found if not d.passed] == []


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
@pytest.mark.parametrize("name", ["pi05", "pi0_bf16", "pi05_bf16", "pi0_lora", "pi0_fast", "pi0_fast_bf16"])
def test_every_output_of_openpis_other_models_agrees(name):
  case = parity.load_case(SHARED / name)
  found = list(parity.run_case(case))
  assert len(found) > 5 and [d for d in found if not d.passed] == []
  if case.config.dtype == "bfloat16":
    assert {d.name.split("/")[0] for d in found} == {"params_f32", "params_bf16"}


@pytest.mark.parametrize("name", ["pi05_lora_scaled", "pi0_fast_lora"])
def test_adapters_and_decoding_of_openpi_agree(name):
  found = list(parity.run_case(parity.load_case(REPOSITORY / "tests" / "golden" / name)))
  wanted = {"pi05_lora_scaled": "sample_actions/num_steps_10", "pi0_fast_lora": "sample_greedy12/prefix_prompt"}
  assert wanted[name] in {d.name for d in found}
  assert [d for d in found if not d.passed] == []


def test_variants_say_which_expert_has_adapters():
  facts = json.loads((REPOSITORY / "tests" / "golden" / "pi05_lora_scaled" / "case.json").read_text())["config"]
  facts["model"]["paligemma_variant"] = "gemma_2b"
  config = parity.read_config("pi05", facts, {})
  assert config.paligemma.lora_attn is None and config.expert.lora_ffn == LoraConfig(6, 3.0, rslora=True)
  facts["lora"] = None
  with pytest.raises(Pi0RagError, match="names the variant gemma_300m_lora but has no table 'lora'"):
    parity.read_config("pi05", facts, {})


def copy_case(tmp_path, **facts):
  copy = shutil.copytree(GOLDEN, tmp_path / "case")
  facts = json.loads((copy / "case.json").read_text()) | facts
  (copy / "case.json").write_text(json.dumps(facts))
  return copy


def test_a_kind_that_is_not_supported_names_those_that_are(tmp_path):
  with pytest.raises(Pi0RagError, match="of kind act; supported kinds: pi0, pi05, fast"):
    parity.load_case(copy_case(tmp_path, kind="act"))


def test_a_directory_without_a_case_is_named(tmp_path):
  with pytest.raises(Pi0RagError, match=r"expected case\.json and io\.npz"):
    parity.load_case(tmp_path)


@pytest.mark.parametrize(("name", "error", "passed"), [
  ("v_t", 1e-5, True), ("v_t", 3e-5, False), ("sample_actions/num_steps_5", 5e-5, True), ("positions", 1.0, False)])
def test_float32_gates(name, error, passed):
  wanted = np.full((2, 3), 5.0)
  found = parity.compare(name, wanted + error, wanted)
  assert found.passed == passed and found.value == pytest.approx(error)


def test_bfloat16_gate_is_relative():
  wanted = np.full((2, 3), 5.0)
  assert parity.compare("v_t", wanted * 1.01, wanted, bf16=True).passed
  assert not parity.compare("v_t", wanted * 1.03, wanted, bf16=True).passed


def test_tokens_are_counted_and_magnified_outputs_are_held_by_their_root_mean_square():
  assert parity.compare("sample_temp0.7_12/prefix_prompt", np.array([1, 2, 4]), np.array([1, 2, 3])).value == 1
  wanted = np.full((1, 4, 2), 5.0)
  seen, valid_BS = wanted.copy(), np.array([[True, True, True, False]])
  seen[0, 0, 0], seen[0, 3] = 5.0001, 9.0
  found = parity.compare("pre_logits_targets", seen, wanted, valid_BS=valid_BS)
  assert found.passed and found.value == pytest.approx(2e-5 / 6**0.5, rel=1e-3)


def test_only_valid_positions_count():
  wanted = np.zeros((1, 2, 4))
  seen = wanted.copy()
  seen[0, 1] = np.nan
  valid_BS = np.array([[True, False]])
  assert parity.compare("prefix_out", seen, wanted, valid_BS=valid_BS).passed
  assert not parity.compare("suffix_out", seen, wanted, valid_BS=valid_BS).passed


def test_another_shape_is_named():
  with pytest.raises(Pi0RagError, match=r"v_t has shape \(2,\), recorded is \(3,\)"):
    parity.compare("v_t", np.zeros(2), np.zeros(3))
