"""The command: mistakes are one line and status 2, a grid's failures status 1, and two processes train as one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from absl import flags

from pi0rag_jax.errors import Pi0RagError
from train import distributed, grid, launch

COMMAND = [sys.executable, "-m", "train.launch"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config=configs/panda_small.py", "--config.data=({'path': '/none'},)"], "train.launch: no data set at '/none'"),
    (["--config=configs/panda_small.py", "--ray=local"], "train.launch: --ray trains the points of a grid: give its"),
    (["--config=configs/panda_small.py", "--config.batch_size=0", "--grid=seed=0,1", "--grid=lerning_rate=1"],
     "train.launch: unknown entry of the configuration: 'lerning_rate'; did you mean 'learning_rate'"),
  ],
)
def test_mistakes_end_in_one_line(arguments, message, tmp_path):
  done = subprocess.run([*COMMAND, *arguments, f"--workdir={tmp_path}"], capture_output=True, text=True, check=False)
  assert done.returncode == 2, done.stderr
  assert message in done.stderr
  assert "Traceback" not in done.stderr


@pytest.mark.slow  # three processes that compile at once; .ci/run asks for it
def test_two_processes_train_as_one_does(tmp_path):
  """One workdir for both, which the first writes; this process trains alone meanwhile."""
  tiny.write_data(tmp_path / "data")
  file = tmp_path / "config.py"
  file.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport tiny\n"
                  f"def get_config():\n  return tiny.make_config({str(tmp_path / 'data')!r})\n")
  address = f"--coordinator_address=localhost:{_free_port()}"
  two = [_start(file, tmp_path / "two", address, "--num_processes=2", f"--process_id={i}") for i in range(2)]
  launch.launch(tiny.make_config(tmp_path / "data"), str(tmp_path / "one"))
  logs = []
  for process in two:
    _, log = process.communicate(timeout=200)
    assert process.returncode == 0, log
    logs.append(log)
  assert "process 1 of 2" in logs[1]
  assert "step 4  train" in logs[0] and "step 4  train" not in logs[1]  # only the first process tells
  assert {p.name for p in (tmp_path / "two").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}
  assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1
  expected, found = (json.loads((tmp_path / name / "policy" / "record.json").read_text()) for name in ("one", "two"))
  assert (expected["devices"], found["devices"]) == ("cpu x 1", "cpu x 2")
  assert found["step"] == expected["step"] and found["validation"] == pytest.approx(expected["validation"], rel=1e-4)


def _start(file: Path, workdir: Path, *arguments: str) -> subprocess.Popen:
  command = [*COMMAND, f"--config={file}", f"--workdir={workdir}", *arguments]
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (["--num_processes=2"], "--num_processes without --coordinator_address, --process_id: several processes need"),
    (["--coordinator_address=host:1", "--num_processes=2", "--process_id=2"], "--num_processes=2 it is 0 to 1"),
    (["--coordinator_address=host", "--num_processes=2", "--process_id=0"], "has no port, such as host:1234"),
    (["--distributed"], "cannot join the other processes: "),
  ])
def test_incomplete_flags_of_several_processes_are_refused(given, message, monkeypatch):
  values = flags.FlagValues()
  monkeypatch.setattr(distributed.flags, "FLAGS", values)
  for kind in ("string", "integer", "boolean"):
    real = getattr(flags, f"DEFINE_{kind}")
    monkeypatch.setattr(distributed.flags, f"DEFINE_{kind}",
                        lambda *args, real=real, **options: real(*args, flag_values=values, **options))
  distributed.define_flags()
  values(["program", *given])

  def nowhere(**_):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(distributed.jax.distributed, "initialize", nowhere)
  with pytest.raises(Pi0RagError, match=message):
    distributed.initialize(values)


def test_a_grid_says_whether_a_point_failed(tmp_path, monkeypatch):
  config = grid.with_lists(tiny.make_config("data"), ["seed=0,1"])
  for statuses, failed in ((["done", "failed"], True), (["done", "done"], False)):
    monkeypatch.setattr(grid, "run", lambda *_, statuses=statuses, **__: [{"status": status} for status in statuses])
    assert launch.launch(config, str(tmp_path)) is failed


def test_a_single_run_in_a_grids_workdir_is_refused(tmp_path):
  grid.write(tmp_path, [])
  with pytest.raises(Pi0RagError, match="is of a grid: give its lists again, or another --workdir"):
    launch.launch(tiny.make_config("data"), str(tmp_path))
