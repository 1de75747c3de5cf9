"""Actions as text, against openpi's records and with a FAST tokenizer made here."""

import json

import numpy as np
import pytest
import scipy.fft
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.robots import action_tokens
from pi0rag_jax.robots.action_tokens import ActionTokenizer, BinningCodec, FastCodec

SCALE, MIN_TOKEN, MAX_TOKEN = 10, -40, 40
HORIZON, DIM = 8, 3


def smooth_chunks(count):
  """Returns chunks of actions in [-1, 1] that few cosine coefficients describe."""
  coefficients = np.random.default_rng(0).normal(size=(count, HORIZON, DIM)) * 0.8 / (1 + np.arange(HORIZON))[:, None]
  return np.clip(scipy.fft.idct(coefficients, axis=1, norm="ortho"), -1, 1)


@pytest.fixture(scope="module")
def own_codec(tmp_path_factory):
  """A byte-pair code of cosine coefficients, trained and laid out like the published one."""
  directory = tmp_path_factory.mktemp("fast")
  quantized = np.around(scipy.fft.dct(smooth_chunks(200), axis=1, norm="ortho") * SCALE).astype(int) - MIN_TOKEN
  bpe = tokenizers.Tokenizer(models.BPE())
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = decoders.ByteLevel()
  alphabet = [chr(i) for i in range(MAX_TOKEN - MIN_TOKEN + 1)]
  bpe.train_from_iterator(["".join(map(chr, chunk.reshape(-1))) for chunk in quantized], trainers.BpeTrainer(
    vocab_size=400, initial_alphabet=[*alphabet, *pre_tokenizers.ByteLevel.alphabet()], show_progress=False))
  bpe.save(str(directory / "tokenizer.json"))
  (directory / "processor_config.json").write_text(json.dumps({"scale": SCALE, "min_token": MIN_TOKEN}))
  return FastCodec(directory)


def test_fast_gives_back_what_it_takes(own_codec):
  for chunk in smooth_chunks(5):
    ids = own_codec.encode(chunk)
    assert len(ids) < chunk.size
    # Rounding leaves half a step of every coefficient.
    np.testing.assert_allclose(own_codec.decode(ids, HORIZON, DIM), chunk, atol=0.5 / SCALE * np.sqrt(HORIZON))


def test_fast_is_its_definition(own_codec):
  chunk = smooth_chunks(1)[0]
  rounded = np.around(scipy.fft.dct(chunk, axis=0, norm="ortho") * SCALE) / SCALE
  np.testing.assert_allclose(own_codec.decode(own_codec.encode(chunk), HORIZON, DIM),
                             scipy.fft.idct(rounded, axis=0, norm="ortho"), atol=1e-12)


@pytest.mark.parametrize("ids", [[], [0], [-5, 3], [10**6]])
def test_ids_of_no_chunk_give_zeros(own_codec, ids):
  np.testing.assert_array_equal(own_codec.decode(ids, HORIZON, DIM), np.zeros((HORIZON, DIM)))


def test_recorded_tokens(recorded, text_tokenizer, fast_directory):
  tokenizer = ActionTokenizer(text_tokenizer, FastCodec(fast_directory))
  actions = recorded["arrays"]["tok/fast/actions"]
  for name, known in (("with_actions", actions), ("prefix_only", None)):
    case = recorded["fast_tokenizer"][name]
    found = tokenizer.tokenize(case["prompt"], np.array(case["state"]), known, len(case["tokens"]))
    for key, wanted in (("tokenized_prompt", "tokens"), ("tokenized_prompt_mask", "mask"), ("token_ar_mask", "ar"),
                        ("token_loss_mask", "loss")):
      np.testing.assert_array_equal(found[key].astype(int), case[wanted])
  assert tokenizer.codec.encode(actions) == recorded["fast_tokenizer"]["fast_ids"]


def test_recorded_actions(recorded, text_tokenizer, fast_directory):
  case, tokenizer = recorded["fast_tokenizer"], ActionTokenizer(text_tokenizer, FastCodec(fast_directory))
  written = np.array(case["with_actions"]["tokens"])
  for tokens, horizon, key in ((written, 6, "extracted"), (written, 5, "extract_wrong_shape"),
                               (np.array(case["prefix_only"]["tokens"]), 6, "extract_no_action")):
    found = tokenizer.extract_actions(tokens, horizon, 3)
    np.testing.assert_allclose(found, case[key], atol=1e-12)
    assert found.dtype == case[key].dtype


def test_recorded_bins(recorded, text_tokenizer):
  case = recorded["binning_tokenizer"]
  found = ActionTokenizer(text_tokenizer, BinningCodec()).extract_actions(np.array(case["tokens"]), 4, 3)
  np.testing.assert_array_equal(found, case["out"])


def test_bins_are_read_back():
  codec = BinningCodec()
  ids = codec.encode(np.array([[-1.0, 0.0, 0.9]]))
  assert ids == [0, 128, 243] and codec.encode(codec.decode(ids, 1, 3)) == ids
  np.testing.assert_array_equal(codec.decode([1, 2], 1, 3), np.zeros((1, 3)))


def test_a_directory_without_a_tokenizer_is_named(tmp_path):
  with pytest.raises(Pi0RagError, match=r"no FAST tokenizer: expected tokenizer\.json and processor_config\.json"):
    FastCodec(tmp_path)


def test_the_cache_is_used(tmp_path, monkeypatch, fast_directory):
  monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path))
  (tmp_path / "physical-intelligence").mkdir()
  (tmp_path / "physical-intelligence" / "fast").symlink_to(fast_directory)
  assert FastCodec.load().scale == 10


def test_a_missing_tokenizer_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path))
  import huggingface_hub

  def offline(repository, name, *, revision):
    assert revision == action_tokens.FAST_REVISION
    raise OSError("offline")

  monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
  with pytest.raises(Pi0RagError, match=r"hf download physical-intelligence/fast --revision ec4d\w+ --local-dir "
                     "DIR`, then copy DIR to"):
    action_tokens.FastCodec.load()
