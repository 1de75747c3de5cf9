"""Commands: a mistake of the user is one line and status 2."""

import subprocess
import sys

import pytest

from pi0rag_jax import cli
from pi0rag_jax.errors import Pi0RagError

COMMAND = """
from absl import app
from pi0rag_jax import cli

def main(argv):
  cli.refuse_arguments(argv)
  with cli.user_errors("command"):
    print("steps", cli.read_config().steps)

cli.define_config(example="configs/panda_small.py")
app.run(main, flags_parser=cli.flags_parser("command"))
"""


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config=configs/none.py"],
     "command: cannot read the configuration file: [Errno 2] No such file or directory: 'configs/none.py'; "
     "the project's are in configs/"),
    (["--config=configs/panda_small.py", "--config.stepz=3"], "command: unknown entry of the configuration: "),
  ],
)
def test_mistakes_end_in_one_line(arguments, message):
  done = _run(arguments)
  assert done.returncode == 2 and not done.stdout, done.stderr
  assert done.stderr.startswith(message) and done.stderr.count("\n") == 1, done.stderr


def test_the_configuration_is_read_with_its_overrides():
  done = _run(["--config=configs/panda_small.py", "--config.steps=3"])
  assert (done.returncode, done.stdout) == (0, "steps 3\n"), done.stderr


@pytest.mark.parametrize(
  ("arguments", "message"),
  [([], "Flag --config must have a value"), (["--config=configs/panda_small.py", "more"], "unknown argument 'more'")],
)
def test_wrong_usage_is_answered_with_the_flags(arguments, message):
  done = _run(arguments)
  assert done.returncode == 1
  assert message in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_only_the_users_mistakes_are_caught(capsys):
  with pytest.raises(SystemExit) as ended, cli.user_errors("command"):
    raise Pi0RagError("wrong")
  assert ended.value.code == cli.USER_ERROR and capsys.readouterr().err == "command: wrong\n"
  with pytest.raises(ValueError, match="ours"), cli.user_errors("command"):
    raise ValueError("ours")


def _run(arguments):
  return subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, check=False)
