"""What our commands share: their configuration flag, and mistakes of the user that end in one line and status 2."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from absl import app, flags
from ml_collections import config_flags

from pi0rag_jax.errors import Pi0RagError

if TYPE_CHECKING:  # it imports jax, and a wrong flag is answered before that
  from pi0rag_jax.typing import Config

USER_ERROR = 2

flags.disclaim_key_flags()  # so that --help of a command lists the flags that this file defines for it


@contextlib.contextmanager
def user_errors(command: str) -> Iterator[None]:
  """Ends the process with one line, `command: message`, and status 2 where a Pi0RagError leaves the block."""
  try:
    yield
  except Pi0RagError as error:
    print(f"{command}: {error}", file=sys.stderr)
    sys.exit(USER_ERROR)


def define_config(example: str) -> None:
  """Defines `--config`, required. Flags are one namespace for a whole process: only the command that runs has any."""
  config_flags.DEFINE_config_file("config", None, f"Configuration file, as {example}.")
  flags.mark_flag_as_required("config")


def read_config() -> "Config":
  """Returns the locked configuration of `--config`; config_flags reports an unreadable file only when it is used."""
  try:
    return flags.FLAGS.config.lock()
  except OSError as error:
    reason = str(error).strip().splitlines()[-1].strip()
    raise Pi0RagError(f"cannot read the configuration file: {reason}; the project's are in configs/") from error


def flags_parser(command: str) -> Callable[[Sequence[str]], list[str]]:
  """Returns `app.run`'s parser of a command; it takes an override that the configuration lacks for a user's mistake."""

  @user_errors(command)
  def parse(argv):
    try:
      return app.parse_flags_with_usage(argv)
    except AttributeError as error:
      raise Pi0RagError("unknown entry of the configuration: " + " ".join(str(error).split())) from error

  return parse


def refuse_arguments(argv: Sequence[str]) -> None:
  """Raises app.UsageError for what is neither the program nor a flag."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown argument '{argv[1]}'")
