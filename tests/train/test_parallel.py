"""One device, four, two processes and sharded state give the same losses, and the same random draws."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from train import parallel

_SCRIPT = """
import json, sys
import functools
import jax, numpy as np
sys.path.insert(0, sys.argv[1])
kind, address, index, count = sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
from train import parallel
if count > 1:
  jax.distributed.initialize(address, num_processes=count, process_id=index)
import tiny
from pi0rag_jax.models import pi0
from train import optimizer, policy_loss, step

config = tiny.make_config("unused", learning_rate=1e-2, warmup_steps=1)
model = pi0.Pi0Config.from_dict(config.model.to_dict())
rng = np.random.default_rng(0)
size = config.batch_size
images = {name: rng.integers(0, 255, (size, tiny.PIXELS, tiny.PIXELS, 3), dtype=np.uint8) for name in tiny.CAMERAS}
batch = {
  "image": images,
  "state": rng.normal(size=(size, 10)).astype(np.float32),
  "tokenized_prompt": np.ones((size, 8), np.int32),
  "tokenized_prompt_mask": np.ones((size, 8), bool),
  "actions": rng.normal(size=(size, tiny.HORIZON, 5)).astype(np.float32),
  "targets": rng.normal(size=(size, 7)).astype(np.float32),
  "index": np.arange(size, dtype=np.int32),
}
devices = parallel.KINDS[kind](**({"min_bytes": 0} if kind == "fsdp" else {}))
optimize = optimizer.make_optimizer(config)
init = lambda key: {"policy": pi0.init(model, key), "auxiliary": policy_loss.init_head(key, model, 7)}
params = jax.jit(init)(jax.random.key(0))
loss = functools.partial(policy_loss.batch_loss, pi0.Pi0(model), options=None, draws=2)
state = devices.create(functools.partial(step.init_state, optimizer=optimize), devices.place(params))
train = devices.compile_train(functools.partial(
  step.train_step, loss_fn=loss, optimizer=optimize, seed=0, ema_decay=0.9, mean=devices.mean))
losses = []
for _ in range(3):
  local = jax.tree.map(parallel.local_rows, batch)
  state, metrics = train(state, {}, devices.place_batch(local))
  losses.append([float(metrics[name]) for name in ("loss", "grad_norm")])
shapes = [list(x.shape) for x in jax.tree.leaves(state.params)]
largest = max(jax.tree.leaves(state.params), key=lambda x: x.size)
total = float(sum(np.abs(x).sum() for x in jax.tree.leaves(parallel.fetch(state.ema))))
print(json.dumps({"devices": jax.device_count(), "losses": losses, "shapes": shapes, "ema": total,
                  "local": largest.addressable_data(0).size / largest.size}))
"""


def _start(kind: str, devices: int, index: int = 0, count: int = 1, port: int = 0) -> subprocess.Popen:
  # Two cores and more devices than threads deadlock in a collective unless the pool is made larger.
  environment = {**os.environ, "NPROC": "8", "JAX_PLATFORMS": "cpu"}
  environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
  arguments = [str(Path(__file__).parent), kind, f"localhost:{port}", str(index), str(count)]
  command = [sys.executable, "-c", _SCRIPT, *arguments]
  return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _result(process: subprocess.Popen) -> dict:
  out, errors = process.communicate(timeout=200)
  assert process.returncode == 0, errors
  return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def one_device() -> dict:
  return _result(_start("pmap", 1))


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


def _assert_alike(one: dict, other: dict):
  assert one["shapes"] == other["shapes"]  # no stacked axis
  np.testing.assert_allclose(one["losses"], other["losses"], rtol=1e-5)
  np.testing.assert_allclose(one["ema"], other["ema"], rtol=1e-5)


@pytest.mark.parametrize("kind", ["pmap", "fsdp"])
def test_one_device_and_four_train_alike(kind, one_device):
  four = _result(_start(kind, 4))
  assert (one_device["devices"], four["devices"]) == (1, 4)
  assert four["local"] == {"pmap": 1.0, "fsdp": 0.25}[kind]  # of the largest array, on each device
  _assert_alike(one_device, four)


def test_two_processes_train_as_one_does(one_device):
  """With sharded state; test_launch.py has two processes that hold copies."""
  port = _free_port()
  for result in [_result(p) for p in [_start("fsdp", 1, index, 2, port) for index in range(2)]]:
    assert result["devices"] == 2
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
