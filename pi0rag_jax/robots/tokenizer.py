"""Prompt tokenization: sentencepiece models laid out like PaliGemma's (pad 0, eos 1, bos 2, unk 3)."""

import io
import pathlib
import uuid
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from pi0rag_jax import errors
from pi0rag_jax.openpi import download

PALIGEMMA_URL = "gs://big_vision/paligemma_tokenizer.model"
# A state in a prompt is written as one of so many bins of [-1, 1] per dimension.
STATE_BINS = 256


class SentencePieceTokenizer:
  """Turns a prompt into the fixed-length tokens and mask that the model takes."""

  def __init__(self, path):
    self.path = pathlib.Path(path)
    if not self.path.is_file():
      raise errors.Pi0RagError(f"no sentencepiece model at {path}: a policy directory holds 'tokenizer.model'")
    try:
      self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except RuntimeError as error:
      raise errors.Pi0RagError(f"{path} is no sentencepiece model or is damaged: {error}") from error
    # The last prompt of pi0's form and its arrays, since robots repeat it; one value, for several threads.
    self._last: tuple[tuple[str, int] | None, tuple[np.ndarray, np.ndarray] | None] = (None, None)

  @classmethod
  def paligemma(cls) -> "SentencePieceTokenizer":
    """Returns PaliGemma's tokenizer from openpi's cache, downloaded first if it is not there."""
    try:
      return cls(download.fetch(PALIGEMMA_URL))
    except errors.Pi0RagError as error:
      raise errors.Pi0RagError(
        f"{error}. PaliGemma's tokenizer is missing: download {PALIGEMMA_URL} (4 MB, public) with any tool and put "
        f"it at {download.cached_path(PALIGEMMA_URL)}") from error

  @property
  def vocab_size(self) -> int:
    return self._processor.vocab_size()

  def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
    """Returns the tokens of a text."""
    return self._processor.encode(text, add_bos=bos, add_eos=eos)

  def decode(self, tokens: Sequence[int]) -> str:
    """Returns the text of tokens; those that mean no text are left out."""
    return self._processor.decode([int(token) for token in tokens])

  def encode_prompt(self, prompt: str, max_len: int, *, state=None) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens int32[L], mask bool[L]) of a prompt, padded with 0 and masked.

    A prompt longer than `max_len` loses its end, as in openpi, with a warning.

    Args:
      state: float[P], normalized: written into the prompt in pi0.5's form. None is pi0's form, which ends with
        a newline, the start-of-answer token.
    """
    if state is not None:
      return _fitted(self.encode(f"Task: {_cleaned(prompt)}, State: {state_text(state)};\nAction: ", bos=True), max_len)
    wanted, (known, arrays) = (prompt, max_len), self._last
    if known != wanted or arrays is None:
      arrays = _fitted(self.encode(_cleaned(prompt), bos=True) + self.encode("\n"), max_len)
      for array_L in arrays:
        array_L.flags.writeable = False
      self._last = wanted, arrays
    return arrays


def _cleaned(prompt: str) -> str:
  return prompt.strip().replace("_", " ").replace("\n", " ")


def _fitted(ids: Sequence[int], max_len: int) -> tuple[np.ndarray, np.ndarray]:
  return fit_length(ids, max_len), np.arange(max_len) < len(ids)


def state_text(state) -> str:
  """Returns the bin of each dimension of a state in [-1, 1], 0 to 255, as openpi writes it; below -1 is -1."""
  edges = np.linspace(-1, 1, STATE_BINS + 1)[:-1]
  return " ".join(map(str, np.digitize(state, edges) - 1))


def fit_length(ids: Sequence[int], max_len: int) -> np.ndarray:
  """Returns int32[max_len]: tokens padded with 0, or cut off with a warning."""
  if len(ids) > max_len:
    warnings.warn(f"the prompt has {len(ids)} tokens, the model takes {max_len} (max_token_len): the end is cut off",
                  stacklevel=3)
  tokens_L = np.zeros(max_len, np.int32)
  tokens_L[: len(ids)] = ids[:max_len]
  return tokens_L


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
  draft = pathlib.Path(f"{path}.{uuid.uuid4().hex}.tmp")  # the processes of one run may all come here
  draft.write_bytes(model.getvalue())
  draft.replace(path)
