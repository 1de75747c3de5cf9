"""What our commands share: their configuration flag, and mistakes of the user that end in one line and status 2."""

import contextlib
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict, config_flags

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


def define_memory(text: str, default: str | None = None, *, versions: bool = True) -> None:
  """Defines `--memory`, and what concerns one on a server; `memory.address.given` reads them."""
  flags.DEFINE_string("memory", default, f"{text} A folder, or postgresql://USER@HOST:PORT/DATABASE?memory=NAME.")
  flags.DEFINE_string("memory_credentials", None, "Passwords of a memory on a server: a file of lines "
                      "host:port:database:user:password that nobody else may read.")
  if versions:
    flags.DEFINE_integer("memory_version", None, "Read a memory on a server as it was at this version, whatever is "
                         "taught meanwhile.", lower_bound=0)


def read_config() -> "Config":
  """Returns the locked configuration of `--config`, which `flags_parser` has checked."""
  return flags.FLAGS.config.lock()


def flags_parser(command: str) -> Callable[[Sequence[str]], list[str]]:
  """Returns `app.run`'s parser of a command that takes flags alone; whatever is wrong is a mistake of the user."""

  @user_errors(command)
  def parse(argv):
    # Other commands have a flag of that name that is no such file.
    ours = "config" in flags.FLAGS and isinstance(flags.FLAGS["config"].parser, _FILE_PARSER)
    name = _config_of(argv) if ours else None
    if name is not None:
      check_overrides(load_config(name), argv)
    try:
      program, *others = flags.FLAGS(argv)
    except flags.Error as error:
      hint = _grid_hint(str(error)) if str(error).startswith("flag --config.") else "; --help lists the flags"
      raise Pi0RagError(_one_line(error).rstrip(" .") + hint) from error
    if others:
      raise Pi0RagError(f"unknown argument '{others[0]}'; flags are given as --name=value")
    return [program]

  return parse


_FILE_PARSER = config_flags.config_flags.ConfigFileFlagParser


def load_config(name: str) -> ConfigDict:
  """Returns what `get_config()` of a file returns, if it is a configuration of ours.

  Args:
    name: a path, or path:variant, as `--config` takes it.
  """
  file = name.split(":", 1)[0]
  try:
    found: Any = _FILE_PARSER("config").parse(name)
    if type(found).__name__ == "_ErrorConfig":  # of config_flags: keeps until it is used why a file cannot be read
      found.lock()
  except OSError as error:
    reason = str(error).strip().splitlines()[-1].strip()
    raise Pi0RagError(f"cannot read the configuration file: {reason}; the project's are in configs/") from error
  except AttributeError as error:
    raise _wrong_attribute(file, error) from error
  except (ImportError, SyntaxError, TypeError, ValueError) as error:
    reason = str(error).strip().splitlines()[-1].strip()
    raise Pi0RagError(f"cannot read the configuration file '{file}': {reason}") from error
  if type(found).__name__ == "TrainConfig":  # of pi0rag_jax.openpi, which this file must not import
    raise Pi0RagError(f"'{file}' describes a robot and its model, not a training: use --config="
                      f"configs/pi0_libero_lora.py --config.openpi={file}")
  if not isinstance(found, ConfigDict):
    raise Pi0RagError(f"get_config() of '{file}' returns a {type(found).__name__}, expected an ml_collections "
                      "ConfigDict, as configs/panda_small.py has it")
  return found


def check_overrides(config: ConfigDict, argv: Sequence[str]) -> None:
  """Raises for a `--config.name=value` whose name the configuration lacks."""
  for argument in argv:
    found = re.match(r"--?(?:no)?config\.([\w.]+)(?:=|$)", argument)
    holder, path = config, found[1].split(".") if found else []
    for depth, name in enumerate(path):
      above = ".".join(path[:depth])
      if not isinstance(holder, ConfigDict):
        raise Pi0RagError(f"unknown entry of the configuration: '{above}.{name}'; '{above}' is {holder!r}, without "
                          "entries")
      if name not in holder:
        if above and not len(holder):
          raise Pi0RagError(f"unknown entry of the configuration: '{above}.{name}'; '{above}' is empty: give it as a "
                            f"whole, --config.{above}=\"{{'{name}': ...}}\"")
        raise unknown_entry(name, holder, inside=above)
      holder = holder[name]


def unknown_entry(name: str, known: Iterable[str], *, inside: str = "") -> Pi0RagError:
  """Returns the error for an entry that a configuration, or one within it, does not know."""
  known = sorted(known)
  near = difflib.get_close_matches(name, known, n=3)
  hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(known)}"
  return Pi0RagError(f"unknown entry of the configuration: '{inside + '.' if inside else ''}{name}'; {hint}")


def _config_of(argv: Sequence[str]) -> str | None:
  """Returns the value of `--config`, given as --config=VALUE or --config VALUE."""
  for argument, following in zip(argv, [*argv[1:], None]):
    found = re.fullmatch(r"--?config(?:=(.*))?", argument)
    if found:
      return following if found[1] is None else found[1]
  return None


def _wrong_attribute(file: str, error: AttributeError) -> Pi0RagError:
  """Returns the error for a file that has no `get_config`, or adds an entry to a locked configuration."""
  text = _one_line(error).replace("\\'", "'")
  unknown = re.search(r"Key \"([^\"]+)\" does not exist", text)
  reason = unknown_entry(unknown[1], re.findall(r"'(\w+)':", text)) if unknown else text
  return Pi0RagError(f"cannot read the configuration file '{file}': {reason}")


def _grid_hint(text: str) -> str:
  """Returns what to write instead of a list, for a command that takes lists."""
  found = re.match(r"flag --config\.([\w.]+)=\[", text)
  return f"; a list is given as --grid={found[1]}=..." if found and "grid" in flags.FLAGS else ""


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split())
