"""One device, eight, two processes and sharded state give the same losses, and the same random draws."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import three_steps

from pi0rag_jax.errors import Pi0RagError
from train import parallel


def _start(*kinds: str, devices: int, index: int = 0, count: int = 1, port: int = 0) -> subprocess.Popen:
  # Two cores and more devices than threads deadlock in a collective unless the pool is made larger.
  environment = {**os.environ, "NPROC": "16", "JAX_PLATFORMS": "cpu"}
  environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
  environment["PYTHONPATH"] = str(Path(__file__).parent)
  command = [sys.executable, "-m", "three_steps", f"localhost:{port}", str(index), str(count), *kinds]
  return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _results(process: subprocess.Popen) -> list[dict]:
  """Returns what a process printed, by kind as started."""
  out, errors = process.communicate(timeout=200)
  assert process.returncode == 0, errors
  return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def one_device() -> dict:
  return three_steps.train("pmap")


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


def _assert_alike(one: dict, other: dict):
  assert one["shapes"] == other["shapes"]  # no stacked axis
  np.testing.assert_allclose(one["losses"], other["losses"], rtol=1e-5)
  np.testing.assert_allclose(one["ema"], other["ema"], rtol=1e-5)


def test_one_device_and_eight_train_alike(one_device):
  pmap, fsdp = _results(_start("pmap", "fsdp", devices=8))
  assert (pmap["local"], fsdp["local"]) == (1.0, 0.125)  # of the largest array, on each device
  for eight in (pmap, fsdp):
    assert (one_device["devices"], eight["devices"]) == (1, 8)
    _assert_alike(one_device, eight)
  # Weights are gathered for both passes and their gradients scattered; activations stay where their examples are.
  assert fsdp["moved"] < 3
  assert pmap["moved"] < 1.1, "one mean of the gradients, and of the metrics"


@pytest.mark.slow  # two processes that compile at once, both ways; .ci/run asks for it
def test_two_processes_train_as_one_does(one_device):
  port = _free_port()
  for process in [_start("pmap", "fsdp", devices=1, index=index, count=2, port=port) for index in range(2)]:
    for result in _results(process):
      assert result["devices"] == 2
      assert result["reused"], "the state that a step is given is given up, not copied"
      _assert_alike(one_device, result)


def test_a_batch_is_split_in_order():
  batch = {"x": np.arange(6)}
  split = parallel.Replicated().place_batch(batch)["x"]
  np.testing.assert_array_equal(split.reshape(-1), batch["x"])


def test_a_batch_that_devices_cannot_share_is_refused(monkeypatch):
  monkeypatch.setattr(parallel.jax, "device_count", lambda: 4)
  with pytest.raises(Pi0RagError, match="batch_size 6 must be a multiple of the 4 devices"):
    parallel.check_batch_size(6)
  with pytest.raises(Pi0RagError, match="batch_size 4 must be a multiple of the 4 devices times 2 microbatches"):
    parallel.check_batch_size(4, 2)
