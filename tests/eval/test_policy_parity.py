"""Recorded policies of openpi, from the robot's dictionary to its actions."""

import json
import pathlib
import shutil

import pytest

from eval import policy_parity
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy import compiling

TESTS = pathlib.Path(__file__).parents[1]
GOLDEN = TESTS / "golden" / "policy_e2e"
TOKENIZERS = TESTS / "robots" / "recorded" / "tokenizer"
FACTS = json.loads((GOLDEN / "case.json").read_text())


def copy_case(directory, names):
  """Returns a copy of the case with some of its policies, beside the cases whose checkpoints these name."""
  case = shutil.copytree(GOLDEN, directory / "policy_e2e")
  (case / "case.json").write_text(json.dumps({name: FACTS[name] for name in names}))
  for checkpoint in {FACTS[name]["checkpoint"] for name in names}:
    (directory / checkpoint).symlink_to(TESTS / "golden" / checkpoint)
  return case


def test_every_recorded_policy_agrees(tmp_path, monkeypatch):
  tokens = [name for name in FACTS if FACTS[name]["checkpoint"] == "pi0_fast"]
  flows = [name for name in FACTS if name not in tokens]
  found = list(policy_parity.run_case(copy_case(tmp_path / "flows", flows), TOKENIZERS))
  # Two tokens of the random pi0-FAST are as good as alike: how sums are rounded decides, and here it is as for users.
  real = compiling.options
  monkeypatch.setattr(compiling, "options", lambda params: real(params) | {"xla_cpu_use_fusion_emitters": True})
  found += policy_parity.run_case(copy_case(tmp_path / "tokens", tokens), TOKENIZERS)
  assert {f"{name}/out/actions" for name in FACTS} <= {d.name for d in found} and len(FACTS) == 7
  assert {"aloha_pi0/model_input/image_s4/base_0_rgb", "droid_pi05/model_input/tokenized_prompt",
          "libero_pi0_fast/model_input/state"} <= {d.name for d in found}
  assert [d for d in found if not d.passed] == []


def test_a_case_without_its_sibling_is_named(tmp_path):
  case = copy_case(tmp_path, ["aloha_pi0"])
  (tmp_path / "pi0").unlink()
  with pytest.raises(Pi0RagError, match=r"weights are those of the case pi0: expected it at .*pi0"):
    next(policy_parity.run_case(case, TOKENIZERS))


def test_tokenizers_are_asked_for():
  with pytest.raises(Pi0RagError, match="starts from text: give --tokenizers"):
    next(policy_parity.run_case(GOLDEN, None))


def test_cases_of_policies_are_told_apart(tmp_path):
  assert policy_parity.is_policy_case(GOLDEN)
  assert not policy_parity.is_policy_case(TESTS / "golden" / "pi0") and not policy_parity.is_policy_case(tmp_path)


def test_a_directory_without_tokenizers_is_named(tmp_path):
  with pytest.raises(Pi0RagError, match=r"holds 0 files \*\.model, one is needed"):
    next(policy_parity.run_case(copy_case(tmp_path, ["aloha_pi0"]), tmp_path))
