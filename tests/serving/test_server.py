"""The command: it compiles, serves, ends at Ctrl-C, and answers mistakes in one line."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from pi0rag_jax.serving.client import WebsocketClientPolicy

COMMAND = [sys.executable, "-m", "pi0rag_jax.serving.server"]


def test_it_serves_until_interrupted(observations):
  command = [*COMMAND, "--policy=panda_small", "--host=127.0.0.1", "--port=0"]
  with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[0].startswith("Loaded ") and lines[1].startswith("Compiled in ") and " programs, " in lines[1], lines
    address = lines[2].split()[2]
    assert address.startswith("ws://127.0.0.1:")
    client = WebsocketClientPolicy(address)
    for observation in observations:
      actions_TA = client.infer(observation)["actions"]
      assert actions_TA.shape == (16, 5) and np.isfinite(actions_TA).all()
    process.send_signal(signal.SIGINT)
    out, log = process.communicate(timeout=60)
  assert (process.returncode, out) == (0, "\nStopped.\n"), log
  assert "Traceback" not in log and "opened" in log and "closed" in log
  client.close()


@pytest.mark.parametrize(("flags", "message"), [
  ([], "give either --config"),
  (["--config=pi0_droid", "--policy=panda_small"], "give either --config"),
  (["--policy=panda_small", "--checkpoint=/x"], "--checkpoint belongs to --config"),
  (["--config=pi0_droid", "--memory=/x"], "--memory belongs to --policy"),
])
def test_mistakes_end_in_one_line(flags, message):
  done = subprocess.run([*COMMAND, *flags], capture_output=True, text=True, check=False)
  assert done.returncode == 2 and not done.stdout
  assert done.stderr.startswith(f"pi0rag_jax.serving.server: {message}") and done.stderr.count("\n") == 1
