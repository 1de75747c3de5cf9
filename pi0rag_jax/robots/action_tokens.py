"""Actions as text: the prompts of autoregressive policies, and the codecs between actions and token ids.

pi0-FAST writes the ids of FAST (a discrete cosine transform and a byte-pair code). The baselines of RoboArena
write bins, or the codes of a learned quantizer (`fsq.py`). Ids stand for the last tokens of PaliGemma's vocabulary.
"""

import dataclasses
import logging
import pathlib
from typing import Annotated, Protocol

import msgspec
import numpy as np
import scipy.fft

from pi0rag_jax import errors, lfs, schema
from pi0rag_jax.openpi import download
from pi0rag_jax.robots.tokenizer import SentencePieceTokenizer, fit_length, state_text

FAST_REPOSITORY = "physical-intelligence/fast"
FAST_REVISION = "ec4d7aa71691cac0b8bed6942be45684db2110f4"  # so that no change there changes actions
TOKENIZER_FILE = "tokenizer.json"
# The second is the name of the same file beside tokenizers that were made by hand.
PROCESSOR_FILES = ("processor_config.json", "processor.json")
EXTRA = "pip install 'pi0rag-jax[fast]'"
ACTION_PREFIX, ACTION_END = "Action: ", "|"
# The last tokens of PaliGemma's vocabulary mark image segments; actions lie before them.
SEGMENT_TOKENS = 128
ACTION_BINS = 256

logger = logging.getLogger(__name__)


class ActionCodec(Protocol):
  """Turns a chunk of normalized actions into ids, from 0 upward, and back."""

  def encode(self, actions_TA) -> list[int]:
    """Returns the ids of a chunk."""
    ...

  def decode(self, ids, horizon: int, dim: int) -> np.ndarray:
    """Returns float[horizon, dim]; zeros where the ids are of no such chunk."""
    ...


class _Processor(msgspec.Struct):
  """What is read of a FAST tokenizer's `processor_config.json`."""

  scale: Annotated[float, msgspec.Meta(gt=0)]
  min_token: int


class FastCodec:
  """FAST: the rounded cosine coefficients of a chunk, low frequencies first, as characters of a byte-pair code.

  Source: FAST (arXiv 2501.09747), with the files of huggingface.co/physical-intelligence/fast.
  """

  def __init__(self, directory):
    """Reads `tokenizer.json` and `processor_config.json` of a directory."""
    directory = pathlib.Path(directory)
    processor = next((directory / name for name in PROCESSOR_FILES if (directory / name).is_file()), None)
    if processor is None or not (directory / TOKENIZER_FILE).is_file():
      raise errors.Pi0RagError(f"{directory} is no FAST tokenizer: expected {TOKENIZER_FILE} and {PROCESSOR_FILES[0]}")
    values = schema.read(processor, _Processor)
    self.scale, self.min_token = values.scale, values.min_token
    tokenizers = _import_tokenizers()
    try:
      self._bpe = tokenizers.Tokenizer.from_file(str(directory / TOKENIZER_FILE))
    except BaseException as error:  # the library raises plain Exceptions, and its panics are none
      if isinstance(error, KeyboardInterrupt | SystemExit):
        raise
      raise errors.Pi0RagError(lfs.damaged(directory / TOKENIZER_FILE, str(error)[:200])) from error

  @classmethod
  def load(cls, repository: str = FAST_REPOSITORY) -> "FastCodec":
    """Returns the codec of a repository at Hugging Face: from openpi's cache, Hugging Face's, or downloaded.

    Args:
      repository: its name, or `NAME@REVISION`; that of pi0-FAST is fetched at FAST_REVISION.
    """
    kept = download.cache_directory() / repository
    return cls(kept if (kept / TOKENIZER_FILE).is_file() else _fetch_repository(repository, kept))

  def encode(self, actions_TA) -> list[int]:
    coefficients_TA = np.around(np.asarray(scipy.fft.dct(np.asarray(actions_TA), axis=0, norm="ortho")) * self.scale)
    codes = np.maximum(coefficients_TA.reshape(-1) - self.min_token, 0).astype(int)
    return self._bpe.encode("".join(map(chr, codes))).ids

  def decode(self, ids, horizon: int, dim: int) -> np.ndarray:
    ids = [int(i) for i in ids]
    # Ids outside the code come of a policy that writes no actions.
    text = self._bpe.decode(ids, skip_special_tokens=False) if min(ids, default=0) >= 0 else ""
    coefficients = np.array([ord(character) for character in text], float) + self.min_token
    if coefficients.size != horizon * dim:
      logger.warning("FAST ids hold %d numbers, the chunk has %d x %d: zeros instead", coefficients.size, horizon, dim)
      return np.zeros((horizon, dim))
    return np.asarray(scipy.fft.idct(coefficients.reshape(horizon, dim) / self.scale, axis=0, norm="ortho"))


class BinningCodec:
  """One id per number: its bin of [-1, 1], as in RT-2 and OpenVLA."""

  def encode(self, actions_TA) -> list[int]:
    # Rounded, so that what `decode` returns is encoded to the same ids.
    bins = np.rint((np.asarray(actions_TA).reshape(-1) + 1) / 2 * ACTION_BINS)
    return np.clip(bins, 0, ACTION_BINS - 1).astype(int).tolist()

  def decode(self, ids, horizon: int, dim: int) -> np.ndarray:
    if len(ids) < horizon * dim:
      logger.warning("%d action tokens, the chunk needs %d x %d: zeros instead", len(ids), horizon, dim)
      return np.zeros((horizon, dim), np.float32)
    return np.asarray(ids)[: horizon * dim].reshape(horizon, dim) / ACTION_BINS * 2 - 1


@dataclasses.dataclass(frozen=True)
class ActionTokenizer:
  """The prompts of autoregressive policies: 'Task: ..., State: ...;', then 'Action: ', the actions' tokens, '|'."""

  text: SentencePieceTokenizer
  codec: ActionCodec

  def tokenize(self, prompt: str, state, actions_TA, max_len: int) -> dict[str, np.ndarray]:
    """Returns the model's inputs: `tokenized_prompt` int32[L], its mask, `token_ar_mask` and `token_loss_mask`.

    Args:
      state: float[P], normalized.
      actions_TA: float[T, A], normalized, while training; None leaves the actions to the policy.
    """
    cleaned = prompt.lower().strip().replace("_", " ")
    prefix = self.text.encode(f"Task: {cleaned}, State: {state_text(state)};\n", bos=True)
    postfix = []
    if actions_TA is not None:
      tokens = self._swap(np.asarray(self.codec.encode(actions_TA))).tolist()
      postfix = self.text.encode(ACTION_PREFIX) + tokens + self.text.encode(ACTION_END, eos=True)
    index_L, length = np.arange(max_len), len(prefix) + len(postfix)
    of_postfix_L = (index_L >= len(prefix)) & (index_L < length)
    return {
      "tokenized_prompt": fit_length(prefix + postfix, max_len), "tokenized_prompt_mask": index_L < length,
      # Causal over the actions, and only they are learned.
      "token_ar_mask": of_postfix_L.astype(np.int32), "token_loss_mask": of_postfix_L,
    }

  def extract_actions(self, tokens_M, horizon: int, dim: int) -> np.ndarray:
    """Returns the actions float[horizon, dim] that a policy has written; zeros where it wrote none."""
    text = self.text.decode(tokens_M)
    if ACTION_PREFIX not in text:
      logger.warning("the policy wrote no '%s': zeros instead", ACTION_PREFIX.strip())
      return np.zeros((horizon, dim), np.float32)
    # openpi goes through text too: a token that is not a piece of its own is lost in the same way.
    written = text.split(ACTION_PREFIX)[1].split(ACTION_END)[0].strip()
    return self.codec.decode(self._swap(np.asarray(self.text.encode(written), int)), horizon, dim)

  def _swap(self, ids: np.ndarray) -> np.ndarray:
    """Returns the vocabulary's tokens of a codec's ids, and the other way round."""
    return self.text.vocab_size - 1 - SEGMENT_TOKENS - ids


def _import_tokenizers():
  try:
    import tokenizers
  except ImportError as error:
    raise errors.Pi0RagError(f"FAST actions need the package tokenizers: {EXTRA}") from error
  return tokenizers


def _fetch_repository(repository: str, kept: pathlib.Path) -> pathlib.Path:
  """Returns a directory with the two files of a repository, from Hugging Face's cache or its server."""
  name, _, revision = repository.partition("@")
  revision = revision or (FAST_REVISION if name == FAST_REPOSITORY else "main")
  _import_tokenizers()
  # It comes with tokenizers.
  import huggingface_hub

  try:
    paths = [pathlib.Path(huggingface_hub.hf_hub_download(name, file, revision=revision))
             for file in (TOKENIZER_FILE, PROCESSOR_FILES[0])]
  # Network, HTTP and cache errors of several libraries.
  except Exception as error:
    raise errors.Pi0RagError(
      f"no FAST tokenizer '{repository}' here, and downloading it failed ({type(error).__name__}): on a machine with "
      f"a network run `hf download {name} --revision {revision} --local-dir DIR`, then copy DIR to {kept}") from error
  if len({path.parent for path in paths}) > 1:  # `main` moved between the two
    raise errors.Pi0RagError(f"the files of '{name}' came of different revisions: load it again")
  return paths[0].parent
