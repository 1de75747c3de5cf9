"""Prompts of pi0 and pi0.5, against openpi's records."""

import contextlib

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots import tokenizer
from pi0rag_jax.robots.tokenizer import SentencePieceTokenizer


def check(found, case):
  tokens_L, mask_L = found
  np.testing.assert_array_equal(tokens_L, case["tokens"])
  np.testing.assert_array_equal(mask_L, np.array(case["mask"], bool))
  assert tokens_L.dtype == np.int32 and mask_L.dtype == bool


def cut_off(case):
  """Expects the warning where the recorded prompt fills every token."""
  full = all(case["mask"])
  return pytest.warns(UserWarning, match=r"the end is cut off") if full else contextlib.nullcontext()


def test_recorded_prompts_of_pi0(recorded, text_tokenizer):
  for case in recorded["paligemma_tokenizer"]["pi0"]:
    with cut_off(case):
      check(text_tokenizer.encode_prompt(case["prompt"], case["max_len"]), case)


def test_recorded_prompts_of_pi05(recorded, text_tokenizer):
  for case in recorded["paligemma_tokenizer"]["pi05"]:
    with cut_off(case):
      check(text_tokenizer.encode_prompt(case["prompt"], case["max_len"], state=np.array(case["state"])), case)


def test_recorded_bins_of_the_state(recorded):
  case = recorded["discretize"]
  assert tokenizer.state_text(np.array(case["state"])) == " ".join(map(str, case["bins"]))


def test_a_long_prompt_warns_with_the_numbers(text_tokenizer):
  with pytest.warns(UserWarning, match=r"the prompt has \d+ tokens, the model takes 4 \(max_token_len\)"):
    text_tokenizer.encode_prompt("pick the red cube and the blue one", 4)


def test_a_missing_model_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path))
  monkeypatch.setattr(tokenizer.download, "fetch", fail)
  with pytest.raises(Pi0RagError, match=r"no network.*put it at .*big_vision/paligemma_tokenizer\.model"):
    SentencePieceTokenizer.paligemma()


def fail(url):
  raise Pi0RagError("no network")


def test_the_cache_is_used(tmp_path, monkeypatch, text_tokenizer):
  monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path))
  (tmp_path / "big_vision").mkdir()
  tokenizer.train_tokenizer(["pick up the cube"], tmp_path / "big_vision" / "paligemma_tokenizer.model", vocab_size=32)
  assert SentencePieceTokenizer.paligemma().vocab_size < text_tokenizer.vocab_size


def test_a_damaged_model_is_named(tmp_path):
  (tmp_path / "broken.model").write_bytes(b"no model")
  with pytest.raises(Pi0RagError, match=r"is no sentencepiece model or is damaged"):
    SentencePieceTokenizer(tmp_path / "broken.model")
