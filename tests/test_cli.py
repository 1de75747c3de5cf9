"""Commands: a mistake of the user is one line and status 2."""

import re
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from pi0rag_jax import cli
from pi0rag_jax.errors import Pi0RagError

COMMAND = """
from absl import app
from pi0rag_jax import cli

def main(_):
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
    (["--config=configs/panda_small.py", "--config.steps=abc"], "command: flag --config.steps=abc: invalid literal"),
    (["--config=configs/my_robot.py", "--config.steps=3"],
     "command: 'configs/my_robot.py' describes a robot and its model, not a training: use "
     "--config=configs/pi0_libero_lora.py --config.openpi=configs/my_robot.py\n"),
    ([], "command: flag --config=None: Flag --config must have a value other than None; --help lists the flags\n"),
    (["--config=configs/panda_small.py", "more"],
     "command: unknown argument 'more'; flags are given as --name=value\n"),
    (["--config=configs/panda_small.py", "--confg.steps=3"], "command: Unknown command line flag 'confg.steps'"),
  ],
)
def test_mistakes_end_in_one_line(arguments, message):
  done = _run(arguments)
  assert done.returncode == 2 and not done.stdout, done.stderr
  assert done.stderr.startswith(message) and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("--config.lerning_rate=1", "'lerning_rate'; did you mean 'learning_rate' or 'final_learning_rate_fraction'?"),
    ("--config.model.siglip.widht=3", "'model.siglip.widht'; did you mean 'width'?"),
    ("--config.model.siglip.q=3", "'model.siglip.q'; there are depth, mlp_dim, num_heads, "),
    ("--config.steps.x=3", "'steps.x'; 'steps' is 4, without entries"),
    ("--config.columns.state=qpos", """'columns.state'; 'columns' is empty: give it as a whole, """),
  ],
)
def test_unknown_overrides_are_named(override, message):
  config = ConfigDict({"steps": 4, "learning_rate": 1.0, "final_learning_rate_fraction": 0.1, "columns": {},
                       "model": {"siglip": {"width": 3, "depth": 2, "mlp_dim": 1, "num_heads": 1}}})
  with pytest.raises(Pi0RagError, match=re.escape(message)):
    cli.check_overrides(config, ["program", "--config=file.py", "--config.steps=3", override])


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("config = panda_small.get_config()\n  config.lerning_rate = 1\n  return config",
     "unknown entry of the configuration: 'lerning_rate'; did you mean 'learning_rate'"),
    ("return {'steps': 3}", "get_config() of '{file}' returns a dict, expected an ml_collections ConfigDict"),
    ("import nonsense", "cannot read the configuration file '{file}': No module named 'nonsense'"),
    ("x = ", "cannot read the configuration file '{file}': invalid syntax (wrong.py, line 3)"),
  ],
)
def test_wrong_files_are_named(text, message, tmp_path):
  file = tmp_path / "wrong.py"
  file.write_text(f"from configs import panda_small\ndef get_config():\n  {text}\n")
  with pytest.raises(Pi0RagError, match=re.escape(message.format(file=file))) as caught:
    cli.load_config(str(file))
  assert "\n" not in str(caught.value)


def test_the_configuration_is_read_with_its_overrides():
  done = _run(["--config=configs/panda_small.py", "--config.steps=3"])
  assert (done.returncode, done.stdout) == (0, "steps 3\n"), done.stderr


def test_only_the_users_mistakes_are_caught(capsys):
  with pytest.raises(SystemExit) as ended, cli.user_errors("command"):
    raise Pi0RagError("wrong")
  assert ended.value.code == cli.USER_ERROR and capsys.readouterr().err == "command: wrong\n"
  with pytest.raises(ValueError, match="ours"), cli.user_errors("command"):
    raise ValueError("ours")


def _run(arguments):
  return subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, check=False)
