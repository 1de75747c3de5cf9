"""One device and four give the same losses, and the same random draws."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pi0rag_jax.errors import Pi0RagError
from train import parallel

_SCRIPT = """
import json, sys
import jax, numpy as np, optax
sys.path.insert(0, sys.argv[1])
import tiny
from pi0rag_jax.models import pi0
from train import initialize, optimizer, parallel, step

config = tiny.make_config("unused", learning_rate=1e-2, warmup_steps=1)
model = pi0.Pi0Config.from_dict(config.model.to_dict())
rng = np.random.default_rng(0)
size = config.batch_size
images = {name: rng.integers(0, 255, (size, tiny.PIXELS, tiny.PIXELS, 3), dtype=np.uint8) for name in tiny.CAMERAS}
batch = {
  "observation": {
    "image": images,
    "state": rng.normal(size=(size, 10)).astype(np.float32),
    "tokenized_prompt": np.ones((size, 8), np.int32),
    "tokenized_prompt_mask": np.ones((size, 8), bool),
  },
  "actions_BTA": rng.normal(size=(size, tiny.HORIZON, 5)).astype(np.float32),
  "targets_BG": rng.normal(size=(size, 7)).astype(np.float32),
}
optimize = optimizer.make_optimizer(config)
params = initialize.initial_params(model, images, seed=0, targets=7, checkpoint="")
state = parallel.replicate(step.init_state(params, optimize))
train = parallel.compile_step(step.make_train_step(pi0.Pi0(model), optimize, config), donate_state=True)
losses = []
for _ in range(3):
  state, metrics = train(state, parallel.split_batch(batch))
  losses.append([float(metrics[name]) for name in ("loss", "grad_norm")])
shapes = [list(x.shape) for x in jax.tree.leaves(state.params)]
print(json.dumps({"devices": jax.device_count(), "losses": losses, "shapes": shapes}))
"""


def _run(devices: int) -> dict:
  # Two cores and more devices than threads deadlock in a collective unless the pool is made larger.
  environment = {**os.environ, "NPROC": "8", "JAX_PLATFORMS": "cpu"}
  environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
  command = [sys.executable, "-c", _SCRIPT, str(Path(__file__).parent)]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def test_one_device_and_four_train_alike():
  one, four = _run(1), _run(4)
  assert (one["devices"], four["devices"]) == (1, 4)
  assert one["shapes"] == four["shapes"]  # no stacked axis
  np.testing.assert_allclose(one["losses"], four["losses"], rtol=1e-4)


def test_a_batch_is_split_in_order():
  batch = {"x": np.arange(6)}
  split = parallel.split_batch(batch)["x"]
  np.testing.assert_array_equal(split.reshape(-1), batch["x"])


def test_a_batch_that_devices_cannot_share_is_refused(monkeypatch):
  monkeypatch.setattr(parallel.jax, "device_count", lambda: 4)
  with pytest.raises(Pi0RagError, match="batch_size 6 must be a multiple of the 4 devices"):
    parallel.check_batch_size(6)
