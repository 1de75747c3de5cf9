"""The tokenizer of a training's prompts: PaliGemma's, a file's, or a small one trained on the prompts themselves."""

from collections.abc import Callable, Iterable
from pathlib import Path

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.policy.spec import TOKENIZER_NAME
from pi0rag_jax.robots.tokenizer import SentencePieceTokenizer, train_tokenizer
from train import parallel

TRAINED = "train"  # as `text_tokenizer`


def load(choice: str, folder: Path, prompts: Callable[[], Iterable[str]], *, vocab_size: int | None
         ) -> SentencePieceTokenizer:
  """Returns the tokenizer that a configuration's `text_tokenizer` names.

  Args:
    choice: '' for PaliGemma's, 'train' for one of the data's prompts, or a file.
    folder: where one that is trained is kept.
    prompts: gives them; asked only where one is trained.
    vocab_size: of the model; None where it takes any.
  Raises:
    Pi0RagError: it has more tokens than the model takes.
  """
  if choice == TRAINED:
    tokenizer = trained(folder, prompts, vocab_size=vocab_size or 1024)
  else:
    tokenizer = SentencePieceTokenizer(choice) if choice else SentencePieceTokenizer.paligemma()
  if vocab_size and tokenizer.vocab_size > vocab_size:
    raise Pi0RagError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model's vocab_size is {vocab_size}")
  return tokenizer


def trained(folder: Path, prompts: Callable[[], Iterable[str]], *, vocab_size: int) -> SentencePieceTokenizer:
  """Returns the tokenizer in a folder, trained there once, by the first process."""
  path = folder / TOKENIZER_NAME
  if parallel.is_first() and not path.exists():
    train_tokenizer(prompts(), path, vocab_size=vocab_size)
  parallel.wait_for_all("tokenizer")
  return SentencePieceTokenizer(path)
