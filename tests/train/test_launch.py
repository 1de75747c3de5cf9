"""The command: a mistake of the user is one line and status 2."""

import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "train.launch"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config=configs/panda_small.py", "--config.data_dir=/none"], "train.launch: no data directory '/none'"),
    (["--config=configs/none.py"], "train.launch: cannot read the configuration file: [Errno 2] No such file"),
  ],
)
def test_mistakes_end_in_one_line(arguments, message, tmp_path):
  done = subprocess.run([*COMMAND, *arguments, f"--workdir={tmp_path}"], capture_output=True, text=True, check=False)
  assert done.returncode == 2, done.stderr
  assert message in done.stderr
  assert "Traceback" not in done.stderr
