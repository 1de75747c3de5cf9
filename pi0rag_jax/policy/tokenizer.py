"""Prompt tokenization: sentencepiece models laid out like PaliGemma's (pad 0, eos 1, bos 2, unk 3)."""

import io
import pathlib
from collections.abc import Iterable

import numpy as np
import sentencepiece

from pi0rag_jax import errors


class SentencePieceTokenizer:
  """Turns a prompt into the fixed-length tokens and mask that the model takes."""

  def __init__(self, path):
    path = pathlib.Path(path)
    if not path.is_file():
      raise errors.Pi0RagError(f"no sentencepiece model at {path}: a policy directory holds 'tokenizer.model'")
    self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))

  @property
  def vocab_size(self) -> int:
    return self._processor.vocab_size()

  def encode_prompt(self, prompt: str, max_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens int32[L], mask bool[L]) of a prompt with bos in front and a newline behind it.

    A prompt longer than `max_len` loses its end, as in openpi; the rest is padded with 0 and masked.
    Source: openpi's PaligemmaTokenizer for pi0 (the newline is the start-of-answer token).
    """
    text = prompt.strip().replace("_", " ").replace("\n", " ")
    ids = self._processor.encode(text, add_bos=True) + self._processor.encode("\n")
    ids = ids[:max_len]
    tokens_L = np.zeros(max_len, np.int32)
    tokens_L[: len(ids)] = ids
    return tokens_L, np.arange(max_len) < len(ids)


def train_tokenizer(corpus: Iterable[str], path, *, vocab_size: int) -> None:
  """Writes a word-level sentencepiece model, laid out like PaliGemma's, for the prompts of `corpus`.

  The newline is a piece of its own, since every pi0 prompt ends with it. Word pieces keep the prompts of a
  small policy short: one token a word. `vocab_size` is an upper bound; the model takes what the corpus has.
  """
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(corpus),
      model_writer=model,
      model_type="word",
      vocab_size=vocab_size,
      hard_vocab_limit=False,
      use_all_vocab=True,
      pad_id=0,
      eos_id=1,
      bos_id=2,
      unk_id=3,
      user_defined_symbols=["\n"],
      normalization_rule_name="identity",
      remove_extra_whitespaces=False,
      minloglevel=2,
  )
  pathlib.Path(path).write_bytes(model.getvalue())
